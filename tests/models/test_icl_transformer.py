"""The forward pass against published activations and loops by hand; every site read and overridden."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repro.models.icl_init import init
from repro.models.icl_transformer import Tap, forward
from repro.models.sites import SITES
from repro.models.specs import IclTransformer
from tests.interventions import by_hand
from tests.models.small_models import from_weights, small

GOLDEN = Path(__file__).parent / "golden"
RNG = np.random.default_rng(7)
EXAMPLES = RNG.standard_normal((2, 3, 3)).astype(np.float32)
LABELS = np.array([[1, 3, 3], [0, 2, 0]])
MLP = {"mlp_ratio": 2.0, "positions": "learned"}
PLACES = [(name, layer) for name, site in SITES.items() for layer in ((0, 1) if site.per_layer else (None,))]
# How far a change of a site may reach, from the first site of the forward pass on.
BEFORE = {name: rank for rank, name in enumerate(SITES)}


def read_all(model, edits=None, query_only=False):
    tap = Tap(edits, PLACES)
    logits = forward(model, jnp.asarray(EXAMPLES), jnp.asarray(LABELS), tap, query_only=query_only)
    return logits, tap.values


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("rope", IclTransformer(heads=4, width=16)),
        ("ape", IclTransformer(heads=4, width=16, positions="learned", mlp_ratio=2)),
        (
            "sinusoidal",
            IclTransformer(heads=4, width=16, positions="sinusoidal", mlp_ratio=2, position_base=30),
        ),
    ],
)
def test_every_site_has_its_published_value(name: str, spec: IclTransformer) -> None:
    with np.load(GOLDEN / f"sites_{name}.npz") as stored:
        golden = dict(stored)
    model = from_weights(golden, "w/", init(spec, 16, 5, 0))
    tap = Tap(read=PLACES)
    forward(model, jnp.asarray(golden["examples"]), jnp.asarray(golden["labels"]), tap)
    compared = 0
    for (site, layer), value in tap.values.items():
        expected = golden.get(site if layer is None else f"{site}/{layer}")
        if expected is None:
            assert site == "mlp_post"  # hidden units are not part of the published record
            continue
        np.testing.assert_allclose(
            value.reshape(expected.shape), expected, rtol=1e-5, atol=1e-5, err_msg=f"{site} {layer}"
        )
        compared += 1
    assert compared >= len(PLACES) - 8


@pytest.mark.parametrize("shape", [{}, MLP, {"depth": 3, "heads": 1}], ids=["rope", "mlp", "deep"])
def test_logits_are_those_by_hand(shape: dict) -> None:
    with jax.enable_x64(True):
        model = small(dtype=np.float64, **shape)
        logits = forward(model, jnp.asarray(EXAMPLES, np.float64), jnp.asarray(LABELS))
        expected = [
            by_hand.forward(model, e, y)[0] for e, y in zip(EXAMPLES.astype(float), LABELS, strict=True)
        ]
        np.testing.assert_allclose(logits, expected, rtol=1e-10)


def test_reading_changes_no_bit_and_axes_are_as_named() -> None:
    model = small(**MLP)
    plain = forward(model, jnp.asarray(EXAMPLES), jnp.asarray(LABELS))
    logits, values = read_all(model)
    np.testing.assert_array_equal(logits, plain)
    assert values.keys() == set(PLACES)
    sizes = {"batch": 2, "item": 3, "position": 5, "query": 5, "key": 5, "channel": 4, "head": 2,
             "head_channel": 2, "hidden": 8, "output": 4}  # fmt: skip
    for (site, layer), value in values.items():
        assert value.shape == tuple(sizes[axis] for axis in SITES[site].axes), (site, layer)


def test_query_alone_is_the_last_row_of_everything() -> None:
    model = small(**MLP)
    logits, values = read_all(model)
    last, rows = read_all(model, query_only=True)
    np.testing.assert_allclose(last, logits[:, -1:], rtol=1e-5, atol=1e-6)
    for place, value in rows.items():
        axes, full = SITES[place[0]].axes, values[place]
        if value.shape != full.shape:
            axis = axes.index("query" if "query" in axes else "position")
            assert place[1] == 1 or place[0] in ("final_norm", "logits")
            full = jnp.take(full, jnp.array([4]), axis)
        np.testing.assert_allclose(value, full, rtol=1e-5, atol=1e-6, err_msg=str(place))


def ordered(place: tuple[str, int | None]) -> tuple[int, int]:
    """When a site is computed: embeddings, then block by block, then the readout."""
    site, layer = place
    if layer is None:
        layer = 99 if site in ("final_norm", "logits") else -1
    return layer, BEFORE[site]


def test_every_entry_can_be_overridden_and_changes_only_what_follows() -> None:
    """One entry of every axis (so one layer, head and position) at a time, all in one jitted vmap."""
    with jax.enable_x64(True):
        model = small(dtype=np.float64, **MLP)
        _, before = read_all(model)
        entries = {place: tuple(max(size - 2, 0) for size in before[place].shape) for place in PLACES}

        def bumped(amounts):
            edits = {
                place: [lambda value, _, i=i, place=place: value.at[entries[place]].add(amounts[i])]
                for i, place in enumerate(PLACES)
            }
            return read_all(model, edits)[1]

        together = jax.jit(jax.vmap(bumped))(1.5 * jnp.eye(len(PLACES)))
    for i, place in enumerate(PLACES):
        after = {other: np.asarray(value[i]) for other, value in together.items()}
        changed = after[place] - np.asarray(before[place])
        assert changed[entries[place]] == pytest.approx(1.5), place
        changed[entries[place]] = 0
        np.testing.assert_allclose(changed, 0, atol=1e-12, err_msg=str(place))
        for other, value in after.items():
            if ordered(other) < ordered(place):
                np.testing.assert_allclose(value, before[other], atol=1e-12, err_msg=f"{place} -> {other}")
        if place[0] != "position_embedding":  # which all sequences of the batch share
            np.testing.assert_allclose(after["logits", None][1], before["logits", None][1], atol=1e-12)


@pytest.mark.parametrize("place", [("token_embedding", None), ("pattern", 0), ("v", 1), ("resid_mid", 0)])
def test_an_override_reaches_the_logits_of_its_sequence(place: tuple) -> None:
    model = small(**MLP)
    edit = {place: [lambda value, _: value.at[0].multiply(0.5)]}
    logits, _ = read_all(model)
    changed, _ = read_all(model, edit)
    assert np.abs(changed[0, -1] - logits[0, -1]).max() > 1e-4


def test_a_later_position_does_not_reach_an_earlier_one() -> None:
    model = small()
    edit = {("resid_pre", 0): [lambda value, _: value.at[:, 3].add(1.0)]}
    np.testing.assert_allclose(read_all(model, edit)[0][:, :3], read_all(model)[0][:, :3], rtol=1e-6)


def test_edits_of_one_site_follow_each_other() -> None:
    twice = [lambda value, _: value + 1, lambda value, _: value * 2]
    _, before = read_all(small())
    _, after = read_all(small(), {("embedding", None): twice})
    np.testing.assert_allclose(after["embedding", None], (before["embedding", None] + 1) * 2, rtol=1e-6)


def test_many_models_at_once_read_what_each_reads_alone() -> None:
    models = [small(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    edits = {("z", 0): [lambda value, _: value.at[:, :, 1].set(0)]}
    shared = {("position_embedding", None)}
    _, together = jax.jit(jax.vmap(lambda m: read_all(m, edits)))(stacked)
    for i, model in enumerate(models):
        _, alone = read_all(model, edits)
        for place in set(alone) - shared:
            np.testing.assert_allclose(
                together[place][i], alone[place], rtol=1e-4, atol=1e-5, err_msg=str(place)
            )


def test_a_label_outside_the_outputs_is_embedded_as_zero() -> None:
    tap = Tap(read=[("label_embedding", None)])
    forward(small(), jnp.asarray(EXAMPLES), jnp.asarray([[9, 1, 0], [0, 4, 1]]), tap)
    zero = np.all(np.asarray(tap.values["label_embedding", None]) == 0, axis=-1)
    assert zero.tolist() == [[True, False, False], [False, True, False]]
