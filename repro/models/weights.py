"""Weights of Equinox models on disk: one safetensors file, one named tensor an array, no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from repro.errors import UserError
from repro.results import write_atomic

Model = TypeVar("Model")


def named(model: Any) -> dict[str, np.ndarray]:
    """The arrays of a model by their place in it, such as blocks.0.attn.qkv.weight."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(eqx.filter(model, eqx.is_array))
    return {_name(path): np.asarray(leaf) for path, leaf in leaves}


def save_weights(path: Path, model: Any, facts: Mapping[str, str], durable: bool = True) -> None:
    """Write the model's arrays, with `facts` as JSON in the file's header. Equal models give equal bytes."""
    tensors = {name: np.ascontiguousarray(array) for name, array in named(model).items()}
    # One entry only: safetensors writes several in random order.
    header = {"facts": json.dumps(dict(facts), sort_keys=True)}
    write_atomic(path, save(tensors, header), durable)


def load_weights(path: Path, template: Model) -> Model:
    """`template` with the arrays of the file. Raises `UserError` if they are not those of such a model."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: the weights cannot be read: {error}") from None
    expected = {name: array.shape for name, array in named(template).items()}
    got = {name: array.shape for name, array in tensors.items()}
    if expected != got:
        differing = sorted(
            name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name)
        )
        first = differing[0]
        raise UserError(
            f"{path}: these are weights of another model; {first} has shape {got.get(first)},"
            f" expected {expected.get(first)} ({len(differing)} arrays differ)"
        )
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(tensors[_name(path)]) if eqx.is_array(leaf) else leaf, template
    )


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(str(getattr(key, "name", getattr(key, "idx", key))) for key in path)
