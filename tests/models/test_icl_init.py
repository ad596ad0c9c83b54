from __future__ import annotations

import hashlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from repro.models.icl_init import init
from repro.models.specs import IclTransformer
from tests.models.small_models import named

GOLDEN = Path(__file__).parent / "golden"
PUBLISHED = json.loads((GOLDEN / "initial_weights.json").read_text())
DIGESTS = json.loads((GOLDEN / "initial_digests.json").read_text())


def model_of(published: dict, **more: object):
    """The model that one entry of the golden file describes, in the words used there."""
    positions = {"ape": "learned"}.get(published["positions"], published["positions"])
    spec = IclTransformer(
        depth=published.get("depth", 2),
        heads=published.get("heads", 4),
        width=published.get("width", 16),
        mlp_ratio=published["mlp_ratio"],
        positions=positions,
        position_base=published.get("base", 10_000.0),
        **more,
    )
    return init(spec, published.get("dim", 16), published.get("n", 5), published["seed"])


@pytest.mark.parametrize("number", range(len(PUBLISHED)))
@pytest.mark.parametrize("partitionable", [True, False])
def test_weights_are_the_published_ones_bit_for_bit(number: int, partitionable: bool) -> None:
    with np.load(GOLDEN / "initial_weights.npz") as golden, jax.threefry_partitionable(partitionable):
        expected = {
            name.split("/")[1]: value for name, value in golden.items() if name.startswith(f"{number}/")
        }
        got = named(model_of(PUBLISHED[number]))
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert np.array_equal(got[name], value), name
        assert got[name].dtype == value.dtype


@pytest.mark.parametrize("number", range(len(DIGESTS)))
def test_models_of_published_size_are_bit_for_bit_the_published_ones(number: int) -> None:
    got = named(model_of(DIGESTS[number]))
    digests = {
        name: hashlib.sha256(got[name].tobytes()).hexdigest()[:16] for name in DIGESTS[number]["sha256"]
    }
    assert digests == DIGESTS[number]["sha256"]


def test_default_model_has_the_published_number_of_parameters() -> None:
    model = init(IclTransformer(), dim=512, outputs=5, seed=5)
    assert sum(leaf.size for leaf in jax.tree.leaves(model)) == 66_629
    more = init(IclTransformer(), dim=512, outputs=7, seed=5)
    assert sum(leaf.size for leaf in jax.tree.leaves(more)) == 66_629 + 2 * (64 + 65)


def test_rescaling_multiplies_every_linear_weight_and_nothing_else() -> None:
    published = PUBLISHED[-1]
    plain, scaled = named(model_of(published)), named(model_of(published, init_rescale=3.0))
    for name, value in plain.items():
        factor = 1 if "norm" in name else 3
        np.testing.assert_allclose(scaled[name], factor * value, rtol=1e-6, err_msg=name)


def test_learned_positions_and_labels_share_a_key_as_published() -> None:
    """Drawn from one key in two ways: a uniform number and a truncated normal rise together."""
    model = init(IclTransformer(positions="learned", width=16, heads=4), dim=3, outputs=32, seed=0)
    assert model.learned_positions is not None
    order = np.argsort(np.asarray(model.label_embed.weight).ravel())
    assert np.all(np.diff(np.asarray(model.learned_positions.weight).ravel()[order]) >= 0)
