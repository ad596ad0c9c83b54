"""Each manipulation, and compositions, against loops written by hand in double precision."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repro.errors import UserError
from repro.interventions.icl_manipulations import Inputs, build, untouched
from repro.interventions.specs import Manipulation
from tests.interventions import by_hand
from tests.interventions.cases import CASES, EXAMPLES, LABELS, QUERY, P, h
from tests.models.small_models import named, small

# One with a second pass, one with the inputs' labels and one with their features, one with three passes.
TYPICAL = ["temperature_of_the_untouched_scores", "two_strengths", "match_soft", "perfect_input_and_copy"]


@pytest.fixture(autouse=True)
def _double_precision() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def made(*manipulations: dict):
    return build([Manipulation.choose(one, "m") for one in manipulations])


def inputs() -> Inputs:
    return Inputs(jnp.asarray(LABELS), jnp.asarray(EXAMPLES))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "shape", [{}, {"positions": "learned", "mlp_ratio": 2.0}], ids=["rope", "learned_mlp"]
)
def test_logits_and_sites_are_those_by_hand(name: str, shape: dict) -> None:
    manipulations, override_of = CASES[name]
    model = small(dtype=np.float64, **shape)
    places = frozenset((site, layer) for site in (P, "v", "resid_post") for layer in (0, 1))
    logits, values = made(*manipulations)(model, inputs(), places, False)
    query, rows = made(*manipulations)(model, inputs(), places, True)
    backwards, _ = made(*manipulations[::-1])(model, inputs(), (), False)
    for n in range(3):
        expected, seen = by_hand.forward(model, EXAMPLES[n], LABELS[n], override_of(model, n))
        np.testing.assert_allclose(logits[n], expected, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(query[n, 0], expected[QUERY], rtol=1e-9, atol=1e-11)
        for (site, layer), value in values.items():
            by_hand_value = seen[site, layer]
            by_hand_value = np.moveaxis(by_hand_value, 0, 1) if site == "v" else by_hand_value
            np.testing.assert_allclose(
                value[n], by_hand_value, rtol=1e-9, atol=1e-11, err_msg=f"{site} {layer}"
            )
        np.testing.assert_allclose(rows[P, 1][n, :, 0], values[P, 1][n, :, QUERY], rtol=1e-9, atol=1e-11)
    np.testing.assert_array_equal(backwards, logits)


def loss_of(model, forward):
    logits, _ = forward(model, inputs())
    scores = jnp.where(logits > -1e8, logits, 0)[:, 0]
    return jnp.sum(scores * jnp.asarray(np.random.default_rng(8).standard_normal((3, 4))))


@pytest.mark.parametrize("name", TYPICAL)  # of all others the published gradients are known: test_golden
def test_gradients_are_finite_differences(name: str) -> None:
    """Nothing is stopped: the directional derivative is that of the whole computation."""
    forward, model = made(*CASES[name][0]), small(dtype=np.float64)
    rng, step = np.random.default_rng(2), 1e-6
    direction = jax.tree.map(lambda a: jnp.asarray(rng.standard_normal(a.shape)), model)
    value = jax.jit(lambda m: loss_of(m, forward))
    ahead, behind = (
        value(jax.tree.map(lambda a, d, s=s: a + s * d, model, direction)) for s in (step, -step)
    )
    gradient = jax.jit(jax.grad(lambda m: loss_of(m, forward)))(model)
    along = sum(
        jnp.sum(g * d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
    )
    np.testing.assert_allclose(along, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-7)


def test_only_what_feeds_the_copied_scores_is_trained() -> None:
    gradient = jax.grad(lambda m: loss_of(m, made({"kind": "perfect_copy", "head": "1:1"})))(
        small(dtype=np.float64)
    )
    sizes = {name: float(np.abs(value).max()) for name, value in named(gradient).items()}
    assert sizes["unembed.weight"] == sizes["final_norm.weight"] == sizes["blocks.1.attn.out.weight"] == 0
    qkv = np.abs(np.asarray(gradient.blocks[1].attn.qkv.weight)).reshape(3, 2, 2, 4).max((2, 3))
    assert (qkv > 0).tolist() == [[False, True], [False, True], [False, False]]
    assert sizes["blocks.0.attn.qkv.weight"] > 0


@pytest.mark.parametrize("name", TYPICAL)
def test_sequences_do_not_touch_each_other(name: str) -> None:
    forward, model = made(*CASES[name][0]), small(dtype=np.float64)
    together, _ = forward(model, inputs(), (), False)
    order = np.array([2, 0, 1])
    shuffled, _ = forward(model, Inputs(*(a[order] for a in inputs()[:2])), (), False)
    np.testing.assert_allclose(shuffled, together[order], rtol=1e-12)
    alone = [forward(model, Inputs(*(a[n : n + 1] for a in inputs()[:2])), (), False)[0][0] for n in range(3)]
    np.testing.assert_allclose(np.array(alone), together, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", TYPICAL)
def test_many_models_at_once_are_one_after_another(name: str) -> None:
    forward = made(*CASES[name][0])
    models = [small(seed, dtype=np.float64) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    at_once = jax.jit(jax.vmap(lambda m: forward(m, inputs())[0]))(stacked)
    np.testing.assert_allclose(at_once, [forward(m, inputs())[0] for m in models], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "nothing",
    [
        [],
        [h("ablate_heads"), h("previous_token_heads"), h("induction_heads"), h("match_heads")],
        [{"kind": "preserve", "sites": []}, {"kind": "head_temperature", "temperatures": {}}],
        [{"kind": "preserve", "sites": ["pattern", "v", "q", "k"]}],
        [{"kind": "head_temperature", "temperatures": {"1:0": 1.0}}],
        [h("forbid_previous_token"), {"kind": "silence_non_label", "heads": []}],
    ],
)
def test_nothing_to_do_changes_no_bit(nothing: list[dict]) -> None:
    model = small(dtype=np.float64)
    for query_only in (True, False):
        expected, _ = untouched(model, inputs(), (), query_only)
        np.testing.assert_array_equal(made(*nothing)(model, inputs(), (), query_only)[0], expected)


@pytest.mark.parametrize("name", TYPICAL)
def test_single_precision_stays_single(name: str) -> None:
    single = Inputs(jnp.asarray(LABELS), jnp.asarray(EXAMPLES, np.float32))
    logits, _ = made(*CASES[name][0])(small(), single)
    assert logits.dtype == np.float32


def test_projected_features_give_the_same() -> None:
    model = small(dtype=np.float64)
    projected = Inputs(jnp.asarray(LABELS), None, model.example_embed(jnp.asarray(EXAMPLES)))
    for name in ("previous_token", "perfect_input_and_copy"):
        forward = made(*CASES[name][0])
        np.testing.assert_allclose(forward(model, projected)[0], forward(model, inputs())[0], rtol=1e-12)
    with pytest.raises(UserError, match="match_heads: needs the features themselves"):
        made(h("match_heads", "1:0"))(model, projected)


def test_a_head_that_does_not_exist_is_refused_also_without_a_config() -> None:
    with pytest.raises(UserError, match="1:2.*layers 0 to 1, heads 0 to 1"):
        made(h("ablate_heads", "1:2"))(small(dtype=np.float64), inputs())


def test_equal_matches_share_the_attention() -> None:
    twice = jnp.asarray(EXAMPLES[:1]).at[:, 1].set(EXAMPLES[:1, 0])
    forward = made(h("match_heads", "1:0"))
    _, values = forward(small(dtype=np.float64), Inputs(jnp.asarray(LABELS[:1]), twice), {(P, 1)})
    np.testing.assert_array_equal(values[P, 1][0, 0, 0], [0, 0.5, 0, 0.5, 0])


def test_longer_contexts() -> None:
    rng = np.random.default_rng(0)
    longer = Inputs(jnp.asarray(rng.integers(0, 4, (2, 5))), jnp.asarray(rng.standard_normal((2, 5, 3))))
    forward = made(h("previous_token_heads", "0:0"), h("match_heads", "1:1", temperature=0.2))
    _, values = forward(small(dtype=np.float64), longer, {(P, 0), (P, 1)}, False)
    np.testing.assert_array_equal(values[P, 0][0, 0], np.eye(9, k=-1) + np.eye(9) * (np.arange(9) == 0))
    row = values[P, 1][:, 1, -1]
    np.testing.assert_allclose(row.sum(-1), 1)
    assert not np.asarray(row[:, 0::2]).any()
