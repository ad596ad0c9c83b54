"""What is measured of each sequence at its query (sheet C.11).

`context labels` are the labels that appear among the sequence's context pairs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

EXCLUDED = -1e20
UNITS = {
    "loss": "nat",
    "acc": "1",
    "prob": "1",
    "in_context_acc": "1",
    "in_context_prob": "1",
    "out_context_acc": "1",
    "out_context_prob": "1",
    "use_context_prob": "1",
}
METRICS = tuple(UNITS)


def cross_entropy(
    logits: Float[Array, "*batch output"], target: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """-log softmax(logits)[target], in nats; 0 for a target that is not an output."""
    one_hot = jax.nn.one_hot(target, logits.shape[-1], dtype=logits.dtype)
    return -jnp.sum(jax.nn.log_softmax(logits) * one_hot, axis=-1)


def query_metrics(
    logits: Float[Array, "batch output"], labels: Int[Array, "batch item"]
) -> dict[str, Float[Array, " batch"]]:
    """All metrics of the query's prediction.

    loss: cross entropy. acc: the largest logit is the label's. prob: softmax probability of the
    label. in_context_*: the same with all labels that are not in the context excluded; out_context_*:
    with those in the context excluded. use_context_prob: probability of all context labels together.
    """
    outputs, target = logits.shape[-1], labels[:, -1]
    one_hot = jax.nn.one_hot(target, outputs, dtype=logits.dtype)
    in_context = jnp.any(jax.nn.one_hot(labels[:, :-1], outputs, dtype=bool), axis=1)
    probability = jax.nn.softmax(logits)

    def accuracy(scores: Float[Array, "batch output"]) -> Float[Array, " batch"]:
        return (jnp.argmax(scores, axis=-1) == target).astype(logits.dtype)

    def label_probability(scores: Float[Array, "batch output"]) -> Float[Array, " batch"]:
        return jnp.sum(jax.nn.softmax(scores) * one_hot, axis=-1)

    inside = jnp.where(in_context, logits, EXCLUDED)
    outside = jnp.where(in_context, EXCLUDED, logits)
    return {
        "loss": cross_entropy(logits, target),
        "acc": accuracy(logits),
        "prob": label_probability(logits),
        "in_context_acc": accuracy(inside),
        "in_context_prob": label_probability(inside),
        "out_context_acc": accuracy(outside),
        "out_context_prob": label_probability(outside),
        "use_context_prob": jnp.sum(probability * in_context, axis=-1),
    }
