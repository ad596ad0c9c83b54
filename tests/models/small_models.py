"""Small models for tests: made of named weights, or of random ones in which no part is trivial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from repro.models.icl_init import init
from repro.models.icl_transformer import IclTransformerModel
from repro.models.specs import IclTransformer


def names(model: IclTransformerModel) -> list[str]:
    """Dotted names of all weights, such as "blocks.0.attn.qkv.weight"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(model)
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]


def named(model: IclTransformerModel) -> dict[str, np.ndarray]:
    """All weights by their dotted name."""
    return dict(zip(names(model), map(np.asarray, jax.tree.leaves(model)), strict=True))


def from_weights(
    weights: Mapping[str, np.ndarray], prefix: str, like: IclTransformerModel
) -> IclTransformerModel:
    """A model of the structure of `like` with the weights `prefix` + name."""
    leaves = [jnp.asarray(weights[prefix + name]) for name in names(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def perturbed(model: IclTransformerModel, seed: int, dtype: Any = np.float32) -> IclTransformerModel:
    """The model with noise on every weight, so that biases and norms matter."""
    rng = np.random.default_rng(seed)
    arrays, rest = eqx.partition(model, eqx.is_array)
    noisy = jax.tree.map(
        lambda a: jnp.asarray(np.asarray(a) + 0.3 * rng.standard_normal(a.shape), dtype), arrays
    )
    return eqx.combine(noisy, rest)


def small(
    seed: int = 0, dim: int = 3, outputs: int = 4, dtype: Any = np.float32, **shape: Any
) -> IclTransformerModel:
    """Depth 2, two heads of two channels, unless `shape` (of `IclTransformer`) says otherwise; perturbed."""
    spec = IclTransformer(**{"depth": 2, "heads": 2, "width": 4, **shape})
    return perturbed(init(spec, dim, outputs, 5), seed, dtype)
