"""Attention patterns of heads that do one thing perfectly (sheet C.12)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def previous_token_pattern(length: int, strength: float) -> Float[np.ndarray, "query key"]:
    """Each token attends to the one before it with `strength` and else to itself; the first to itself."""
    pattern = strength * np.eye(length, k=-1) + (1 - strength) * np.eye(length)
    pattern[0, 0] = 1
    return pattern


def induction_row(labels: Int[Array, "batch item"], strength: float) -> Float[Array, "batch key"]:
    """The query attends to its own label with `strength`, to another label with `1 - strength`.

    Weights sum to 1 if the context has two pairs of different labels.
    """
    return _on_label_tokens(jnp.where(labels[:, :-1] == labels[:, -1:], strength, 1 - strength))


def match_row(examples: Float[Array, "batch item dim"], temperature: float) -> Float[Array, "batch key"]:
    """The query attends to label tokens by the cosine similarity of their exemplars' features with its own.

    Softmax of similarity / temperature; at 0 the most similar exemplar takes all, equal ones share.
    """
    unit = examples / jnp.linalg.norm(examples, axis=-1, keepdims=True)
    similarity = jnp.sum(unit[:, :-1] * unit[:, -1:], axis=-1)
    if temperature > 0:
        return _on_label_tokens(jax.nn.softmax(similarity / temperature, axis=-1))
    best = (similarity == jnp.max(similarity, axis=-1, keepdims=True)).astype(examples.dtype)
    return _on_label_tokens(best / jnp.sum(best, axis=-1, keepdims=True))


def _on_label_tokens(weights: Float[Array, "batch pair"]) -> Float[Array, "batch key"]:
    """Weights of the label tokens, with zeros for exemplars and the query between them."""
    pairs = jnp.stack([jnp.zeros_like(weights), weights], axis=-1).reshape(weights.shape[0], -1)
    return jnp.pad(pairs, ((0, 0), (0, 1)))
