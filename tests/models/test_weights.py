"""Weights on disk: the same arrays back, and clear words about files that are something else."""

from __future__ import annotations

import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from repro.errors import UserError
from repro.models.weights import load_weights, named, save_weights
from tests.models.small_models import small


@pytest.mark.parametrize(
    "shape", [{}, {"positions": "learned", "mlp_ratio": 2.0}], ids=["plain", "everything"]
)
def test_the_same_model_comes_back(tmp_path: Path, shape: dict) -> None:
    path, model = tmp_path / "weights.safetensors", small(seed=1, **shape)
    save_weights(path, model, {"sequences": "64"})
    again = load_weights(path, small(seed=2, **shape))
    assert bool(eqx.tree_equal(again, model))
    assert again.heads == model.heads
    with safe_open(path, "np") as file:
        assert json.loads(file.metadata()["facts"]) == {"sequences": "64"}
        assert set(file.keys()) == set(named(model))


def test_names_are_places_in_the_model() -> None:
    names = named(small(positions="learned", mlp_ratio=2.0))
    assert {"example_embed.weight", "blocks.1.attn.qkv.weight", "blocks.0.mlp.up.bias"} <= names.keys()
    assert "learned_positions.weight" in names and "unembed.bias" in names
    assert sum(array.size for array in names.values()) == sum(
        leaf.size
        for leaf in jax.tree.leaves(eqx.filter(small(positions="learned", mlp_ratio=2.0), eqx.is_array))
    )


def test_transposed_arrays_are_saved_as_they_read(tmp_path: Path) -> None:
    """Arrays that lie in memory in another order than they are indexed must not come back scrambled."""
    transposed = {"w": jnp.asarray(np.arange(6.0).reshape(2, 3).T)}
    save_weights(tmp_path / "w", transposed, {})
    again = load_weights(tmp_path / "w", {"w": jnp.zeros((3, 2))})
    assert again["w"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_equal_weights_give_equal_bytes(tmp_path: Path) -> None:
    facts = {"sequences": "1", "plan": "x", "more": "y", "another": "z"}
    written = set()
    for order in (facts, dict(reversed(facts.items()))) * 4:
        save_weights(tmp_path / "w", small(seed=3), order)
        written.add((tmp_path / "w").read_bytes())
    assert len(written) == 1


def test_another_model_is_refused(tmp_path: Path) -> None:
    save_weights(tmp_path / "w", small(outputs=4), {})
    with pytest.raises(
        UserError, match=r"another model; label_embed.weight has shape \(4, 4\), expected \(4, 9\)"
    ):
        load_weights(tmp_path / "w", small(outputs=9))
    with pytest.raises(UserError, match=r"has shape None"):
        load_weights(tmp_path / "w", small(outputs=4, depth=3))


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing: the weights cannot be read"):
        load_weights(tmp_path / "missing", small())
    save_weights(tmp_path / "torn", small(), {})
    (tmp_path / "torn").write_bytes((tmp_path / "torn").read_bytes()[:-10])
    with pytest.raises(UserError, match="torn: the weights cannot be read"):
        load_weights(tmp_path / "torn", small())


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_weights(tmp_path / "w", small(seed=1), {})
    before = (tmp_path / "w").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left"):
        save_weights(tmp_path / "w", small(seed=2), {})
    assert (tmp_path / "w").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
