"""The transformer's forward pass one token position at a time, over any number of prefixes side by side.

Arrays are laid out channels first and prefixes last, so that a prefix's ancestors need only broadcast
against it, and every loop over channels is vectorised over prefixes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from repro.models.icl_transformer import (
    LAYER_NORM_EPSILON,
    Block,
    IclTransformerModel,
    LayerNorm,
    Linear,
    added_positions,
    rotate,
)


class KeyValue(NamedTuple):
    """Key and value of a token in one layer."""

    key: Float[Array, "head head_channel ..."]
    value: Float[Array, "head head_channel ..."]


Cache = list[list[KeyValue]]  # by layer and token position


class Position:
    """One token position of a model: what of its pass is the same for all prefixes.

    tokens: embedding of each possible token. reads: whether the attention of the last layer is wanted;
    last: whether its output is, too.
    """

    def __init__(
        self,
        model: IclTransformerModel,
        position: int,
        tokens: Float[Array, "token channel"],
        length: int,
        reads: bool,
        last: bool,
    ) -> None:
        self._model, self._reads, self._last = model, reads, last
        if model.positions != "rope":
            tokens = tokens + added_positions(model, length)[position]
        self._projections = [_projection(model, block, position) for block in model.blocks]
        self._embedding = tokens.T
        # The first layer's queries, keys and values depend on the token alone: a table of them.
        self._table = self._seen(0, self._embedding)

    def _seen(self, layer: int, x: Float[Array, "channel ..."]) -> tuple[Array | None, KeyValue]:
        """Query (if it is needed), key and value, ready for products: rotated and scaled."""
        model = self._model
        needs_query = self._reads or layer < len(model.blocks) - 1
        weight, bias = self._projections[layer]
        if not needs_query:
            weight, bias = weight[model.width :], None if bias is None else bias[model.width :]
        joint = linear(Linear(weight, bias), layer_norm(model.blocks[layer].attn_norm, x))
        parts = joint.reshape(-1, model.heads, model.width // model.heads, *x.shape[1:])
        return parts[0] if needs_query else None, KeyValue(parts[-2], parts[-1])

    def __call__(
        self, token: Int[Array, ...], above: Cache
    ) -> tuple[list[KeyValue], list[list[Array]], Float[Array, "channel ..."] | None]:
        """Key and value in each layer, attention to each token so far in each layer, final residual stream.

        above: keys and values of the ancestors, of shapes that broadcast with the prefixes'.
        Attentions are [head, *prefix]. Those of the last layer are missing if it does not read; there is
        a final residual stream only at the last position.
        """
        made, patterns = [], []
        x = take(self._embedding, token)
        for layer, block in enumerate(self._model.blocks):
            if layer:
                query, own = self._seen(layer, x)
            else:
                query, own = jax.tree.map(lambda table: take(table, token), self._table)
            made.append(own)
            if query is None:
                return made, patterns, None
            seen = [*above[layer], own]
            pattern = attention(query, [one.key for one in seen])
            patterns.append(pattern)
            if layer == len(self._model.blocks) - 1 and not self._last:
                return made, patterns, None
            z = mixed(pattern, [one.value for one in seen])
            x = _output(block, x, z.reshape(self._model.width, *z.shape[2:]))
        return made, patterns, x


def attention(query: Array, keys: list[Array]) -> list[Float[Array, "head ..."]]:
    """Softmax over keys of the products of queries and keys, one array for each key."""
    scores = [jnp.sum(query * key, axis=1) for key in keys]
    highest = scores[0]
    for score in scores[1:]:
        highest = jnp.maximum(highest, score)
    raised = [jnp.exp(score - highest) for score in scores]
    scale = 1 / sum(raised)
    return _kept([one * scale for one in raised])


def mixed(pattern: list[Array], values: list[Array]) -> Float[Array, "head head_channel ..."]:
    """The sum of values, weighted by the attention to them."""
    total = pattern[0][:, None] * values[0]
    for weight, value in zip(pattern[1:], values[1:], strict=True):
        total = total + weight[:, None] * value
    return _kept(total)


def _output(block: Block, x: Array, z: Array) -> Float[Array, "channel ..."]:
    """The residual stream after a block, of the one before it and its heads' outputs."""
    x = x + linear(block.attn.out, z)
    if block.mlp is not None:
        assert block.mlp_norm is not None
        hidden = jax.nn.gelu(linear(block.mlp.up, layer_norm(block.mlp_norm, x)), approximate=True)
        x = x + linear(block.mlp.down, hidden)
    return x


def _projection(
    model: IclTransformerModel, block: Block, position: int
) -> tuple[Float[Array, "channel3 channel"], Float[Array, " channel3"] | None]:
    """The fused projection at a position: its queries rotated and scaled, its keys rotated."""
    shape = (3, model.heads, model.width // model.heads)

    def turned(rows: Array) -> Array:
        # rows: input query_key_value head head_channel; one input channel takes the place of a sequence.
        query, key, value = (rows[:, i : i + 1] for i in range(3))
        if model.positions == "rope":
            at = np.array([position])
            query, key = rotate(query, at, model.position_base), rotate(key, at, model.position_base)
        joint = jnp.concatenate([query * shape[2] ** -0.5, key, value], axis=1)
        return joint.reshape(len(rows), 3 * model.width).T

    qkv = block.attn.qkv
    bias = None if qkv.bias is None else turned(qkv.bias.reshape(1, *shape))[:, 0]
    return turned(qkv.weight.T.reshape(-1, *shape)), bias


def linear(layer: Linear, x: Float[Array, "channel ..."]) -> Float[Array, "out ..."]:
    """W x + b on the first axis."""
    y = (layer.weight @ x.reshape(len(x), -1)).reshape(-1, *x.shape[1:])
    return y if layer.bias is None else y + _column(layer.bias, x)


def layer_norm(norm: LayerNorm, x: Float[Array, "channel ..."]) -> Float[Array, "channel ..."]:
    """Normalisation over the first axis."""
    centred = x - jnp.mean(x, axis=0)
    scale = jax.lax.rsqrt(jnp.mean(centred**2, axis=0) + LAYER_NORM_EPSILON)
    return _kept(centred * scale * _column(norm.weight, x) + _column(norm.bias, x))


def _column(vector: Array, x: Array) -> Array:
    """A value for each channel, to broadcast over the prefixes of x."""
    return vector.reshape(-1, *[1] * (x.ndim - 1))


def take(table: Float[Array, "*channel token"], token: Int[Array, ...]) -> Float[Array, ...]:
    """The table's entries for each prefix, prefixes last."""
    flat = table.reshape(-1, table.shape[-1]).at[:, token.ravel()].get(mode="promise_in_bounds")
    return _kept(flat.reshape(*table.shape[:-1], *token.shape))


def _kept(value: Any) -> Any:
    """The value, computed once and in this layout.

    Without it the compiler fuses it into whatever reads it, which then recomputes exponentials, or walks
    over prefixes in strides (2.5 times slower in all).
    """
    return jax.lax.optimization_barrier(value)


def logits(model: IclTransformerModel, x: Float[Array, "channel ..."]) -> Float[Array, "... output"]:
    """Logits of a final residual stream."""
    return jnp.moveaxis(linear(model.unembed, layer_norm(model.final_norm, x)), 0, -1)
