"""Grafts of another model's layers, and what a compiled program leaves out."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.interpreters import partial_eval

from repro.errors import UserError
from repro.interventions.icl_manipulations import Inputs, build, untouched
from repro.interventions.specs import Manipulation
from tests.interventions import by_hand
from tests.interventions.cases import EXAMPLES, LABELS, QUERY, at, filled, h
from tests.models.small_models import named, names, small

IN = {"kind": "graft_in", "run": "r", "till_layer": 0}
OUT = {"kind": "graft_out", "run": "r", "from_layer": 0, "checkpoint": 64}


@pytest.fixture(autouse=True)
def _double_precision() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def made(manipulations: list[dict], frozen=None, own: list[dict] | None = None):
    def load(run: str, checkpoint: int | str):
        return frozen, made(own or [])

    return build([Manipulation.choose(one, "m") for one in manipulations], load)


def inputs() -> Inputs:
    return Inputs(jnp.asarray(LABELS), jnp.asarray(EXAMPLES))


def by_hand_grafted(lower, upper, layer: int, below=by_hand.as_is) -> np.ndarray:
    """Logits (sequence, position, output) of `upper` with the output of block `layer` of `lower`."""
    logits = []
    for n in range(3):
        stream = by_hand.forward(lower, EXAMPLES[n], LABELS[n], below)[1]["resid_post", layer]
        replaced = at(("resid_post", layer), lambda _, stream=stream: stream)
        logits.append(by_hand.forward(upper, EXAMPLES[n], LABELS[n], replaced)[0])
    return np.array(logits)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("depth", [2, 3])
def test_graft_in(layer: int, depth: int) -> None:
    """Also from a deeper model, with the manipulations that model was trained with."""
    model, frozen = small(0, dtype=np.float64), small(1, dtype=np.float64, depth=depth)
    forward = made([{**IN, "till_layer": layer}], frozen, [h("ablate_heads", "0:0")])
    expected = by_hand_grafted(frozen, model, layer, at(("v", 0), filled((0,), 0.0)))
    np.testing.assert_allclose(forward(model, inputs(), (), False)[0], expected, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(forward(model, inputs())[0][:, 0], expected[:, QUERY], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("depth", [2, 3])
def test_graft_out(layer: int, depth: int) -> None:
    """The trained model's manipulations hold; those of the model it goes on in do not."""
    model, frozen = small(0, dtype=np.float64), small(1, dtype=np.float64, depth=depth)
    graft = {**OUT, "from_layer": layer}
    forward = made([graft, h("ablate_heads", "0:1")], frozen, [h("ablate_heads", "1:0")])
    expected = by_hand_grafted(model, frozen, layer, at(("v", 0), filled((1,), 0.0)))
    np.testing.assert_allclose(forward(model, inputs(), (), False)[0], expected, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(forward(model, inputs())[0][:, 0], expected[:, QUERY], rtol=1e-9, atol=1e-11)


def test_graft_out_reads_from_the_model_that_each_layer_belongs_to() -> None:
    model, frozen = small(0, dtype=np.float64), small(1, dtype=np.float64)
    places = {("embedding", None), ("pattern", 0), ("pattern", 1), ("final_norm", None)}
    _, values = made([OUT], frozen)(model, inputs(), places, False)
    _, own = untouched(model, inputs(), places, False)
    assert values.keys() == places
    for place in (("embedding", None), ("pattern", 0)):
        np.testing.assert_array_equal(values[place], own[place])
    replaced = made([{**IN}], model)(frozen, inputs(), places, False)[1]
    for place in (("pattern", 1), ("final_norm", None)):
        np.testing.assert_allclose(values[place], replaced[place], rtol=1e-12)


def trained(name: str) -> bool:
    """Whether a weight belongs to the embeddings or the first block."""
    return name.startswith(("example_embed", "label_embed", "blocks.0"))


@pytest.mark.parametrize("graft", [IN, OUT])
def test_the_frozen_half_is_not_trained(graft: dict) -> None:
    """Its gradient is exactly zero, so that Adam leaves its weights as they are, bit for bit."""
    model, frozen = small(0, dtype=np.float64), small(1, dtype=np.float64)
    forward, optimizer = made([graft], frozen), optax.adam(1e-2)
    gradient_of = jax.jit(jax.grad(lambda m: jnp.sum(forward(m, inputs())[0] ** 2)))
    state, updated = optimizer.init(model), model
    for _ in range(3):
        updates, state = optimizer.update(gradient_of(updated), state)
        updated = optax.apply_updates(updated, updates)
    before, after = named(model), named(updated)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved == {name for name in before if trained(name) == (graft is OUT)}


def test_a_model_is_loaded_once_with_what_names_it() -> None:
    asked = []

    def load(run: str, checkpoint: int | str):
        asked.append((run, checkpoint))
        return small(1, dtype=np.float64), untouched

    forward = build([Manipulation.choose(OUT, "m")], load)
    for _ in range(2):
        forward(small(0, dtype=np.float64), inputs())
    assert asked == [("r", 64)]


@pytest.mark.parametrize(
    ("manipulations", "frozen", "message"),
    [
        ([IN], {"width": 8}, "graft_in: widths must agree; the other model has 8, this one 4"),
        ([OUT], {"width": 8}, "graft_out: widths must agree; the other model has 8, this one 4"),
        ([{**IN, "till_layer": 1}], {"depth": 1}, "graft_in: layer 1, but r has layers 0 to 0"),
        (
            [{**OUT, "from_layer": 1}],
            {"depth": 1},
            "graft_out: layer 1, but the other model has layers 0 to 0",
        ),
    ],
)
def test_models_that_do_not_fit_are_refused(manipulations: list[dict], frozen: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(manipulations, small(1, dtype=np.float64, **frozen))(small(dtype=np.float64), inputs())


def test_without_a_loader_or_features_grafts_are_refused() -> None:
    with pytest.raises(UserError, match="graft_in: models cannot be loaded here"):
        build([Manipulation.choose(IN, "m")])
    model = small(dtype=np.float64)
    with pytest.raises(UserError, match="graft_in: needs the features themselves"):
        made([IN], model)(model, Inputs(jnp.asarray(LABELS), None, jnp.zeros((3, 3, 4))))


@pytest.mark.parametrize(
    ("manipulations", "needed"),
    [
        # The readout of a perfect copy is the scores; values and output projections are not needed.
        ([{"kind": "perfect_copy", "head": "1:0"}], {"blocks.0.attn.qkv.weight", "blocks.1.attn.qkv.weight"}),
        ([{"kind": "perfect_previous_token_input"}], {"blocks.1.attn.out.weight", "unembed.weight"}),
        ([IN], {"blocks.1.attn.qkv.weight", "unembed.weight"}),
        ([OUT], {"blocks.0.attn.out.weight", "label_embed.weight"}),
    ],
)  # fmt: skip
def test_what_does_not_count_is_not_computed(manipulations: list[dict], needed: set[str]) -> None:
    unneeded = {
        "perfect_copy": {"blocks.1.attn.out.weight", "unembed.weight", "final_norm.weight"},
        "perfect_previous_token_input": {"blocks.0.attn.qkv.weight", "blocks.0.attn.out.weight"},
        "graft_in": {"blocks.0.attn.qkv.weight", "blocks.0.attn.out.weight", "example_embed.weight"},
        "graft_out": {"blocks.1.attn.qkv.weight", "blocks.1.attn.out.weight", "unembed.weight"},
    }[manipulations[0]["kind"]]
    model, forward = small(dtype=np.float64), made(manipulations, small(1, dtype=np.float64))
    program = jax.make_jaxpr(lambda m: forward(m, inputs())[0])(model).jaxpr
    _, used = partial_eval.dce_jaxpr(program, [True])
    kept = {name for name, is_used in zip(names(model), used, strict=True) if is_used}
    assert needed <= kept
    assert not unneeded & kept
