"""The transformer of the in-context-learning papers, in Equinox, with every intermediate exposed.

A sequence of T exemplar-label pairs and a query becomes S = 2T + 1 tokens: exemplar, label, …,
query. All functions take a leading `batch` axis and keep it: one product for all tokens of a batch
is several times faster on a CPU than a vmapped product for each sequence.

Reading and overriding goes through a `Tap`: the forward pass shows it every site (see
`repro.models.sites`) and goes on with what it hands back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Place = tuple[str, int | None]
# An edit takes a site's value and the token positions along its position (or query) axis.
Edit = Callable[[Array, np.ndarray], Array]

LAYER_NORM_EPSILON = 1e-5
MASKED = -1e20  # the published mask; large and finite, so that a fully masked row stays defined
LEARNED_POSITIONS = 32


class Tap:
    """Applies edits to the sites they name, in order, and keeps what is to be read.

    edits: functions by (site, layer); layer is None for sites outside the blocks.
    read: the places whose values (after edits) are kept in `values`.
    """

    def __init__(self, edits: Mapping[Place, Sequence[Edit]] | None = None, read: Collection[Place] = ()):
        self._edits, self._read = dict(edits or {}), set(read)
        self.values: dict[Place, Array] = {}

    def wants(self, site: str, layer: int | None = None) -> bool:
        """Whether the site is edited or read; if not, its value need not be laid out for show."""
        return (site, layer) in self._edits or (site, layer) in self._read

    def __call__(self, site: str, layer: int | None, value: Array, positions: np.ndarray) -> Array:
        for edit in self._edits.get((site, layer), ()):
            value = edit(value, positions)
        if (site, layer) in self._read:
            self.values[site, layer] = value
        return value


class Linear(eqx.Module):
    """y = W x + b on the last axis; the weight is stored (out, in)."""

    weight: Float[Array, "out in"]
    bias: Float[Array, " out"] | None

    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        y = x @ self.weight.T
        return y if self.bias is None else y + self.bias


class LayerNorm(eqx.Module):
    """Normalisation over the last axis with a learned scale and shift."""

    weight: Float[Array, " channel"]
    bias: Float[Array, " channel"]

    def __call__(self, x: Float[Array, "*batch channel"]) -> Float[Array, "*batch channel"]:
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(centred**2, axis=-1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + LAYER_NORM_EPSILON) * self.weight + self.bias


class Attention(eqx.Module):
    """Fused projection to queries, keys and values of all heads, and the output projection."""

    qkv: Linear
    out: Linear


class Mlp(eqx.Module):
    """Two linear maps around a tanh-approximated GELU."""

    up: Linear
    down: Linear


class Block(eqx.Module):
    """Pre-norm block; attention-only if `mlp` is None."""

    attn_norm: LayerNorm
    attn: Attention
    mlp_norm: LayerNorm | None
    mlp: Mlp | None


class IclTransformerModel(eqx.Module):
    """Weights of the model, with the few numbers that the forward pass needs besides them."""

    example_embed: Linear
    label_embed: Linear
    learned_positions: Linear | None
    blocks: tuple[Block, ...]
    final_norm: LayerNorm
    unembed: Linear
    heads: int = eqx.field(static=True)
    positions: str = eqx.field(static=True)
    position_base: float = eqx.field(static=True)

    @property
    def width(self) -> int:
        """Channels of the residual stream."""
        return self.label_embed.weight.shape[0]

    @property
    def outputs(self) -> int:
        """Number of labels that can be predicted."""
        return self.unembed.weight.shape[0]


def forward(
    model: IclTransformerModel,
    examples: Float[Array, "batch item dim"] | None,
    labels: Int[Array, "batch item"],
    tap: Tap | None = None,
    example_embedding: Float[Array, "batch item channel"] | None = None,
    query_only: bool = False,
) -> Float[Array, "batch position output"]:
    """Logits at every token position; with `query_only`, at the last one alone (position axis 1).

    `example_embedding` replaces `examples` where the caller has projected the features already.
    `query_only` skips what the query's logits do not depend on in the last block; edits and reads
    of that block then see the query's row only (`positions` says so).
    """
    tap = tap or Tap()
    x = _embed(model, examples, labels, tap, example_embedding)
    everywhere = np.arange(x.shape[1])
    for layer, block in enumerate(model.blocks):
        last = query_only and layer == len(model.blocks) - 1
        x = _block(model, block, layer, x, tap, everywhere[-1:] if last else everywhere)
    seen = everywhere[-1:] if query_only else everywhere
    x = tap("final_norm", None, model.final_norm(x), seen)
    return tap("logits", None, model.unembed(x), seen)


def _embed(
    model: IclTransformerModel,
    examples: Float[Array, "batch item dim"] | None,
    labels: Int[Array, "batch item"],
    tap: Tap,
    example_embedding: Float[Array, "batch item channel"] | None,
) -> Float[Array, "batch position channel"]:
    items = np.arange(labels.shape[1])
    if example_embedding is None:
        assert examples is not None
        example_embedding = model.example_embed(examples)
    embedded_examples = tap("example_embedding", None, example_embedding, items)
    # A label outside the outputs has no one-hot entry, so its embedding is the zero vector.
    one_hot = jax.nn.one_hot(labels, model.outputs, dtype=embedded_examples.dtype)
    embedded_labels = tap("label_embedding", None, model.label_embed(one_hot), items)

    count, length = labels.shape[0], 2 * labels.shape[1] - 1
    pairs = jnp.stack([embedded_examples, embedded_labels], axis=2)
    everywhere = np.arange(length)
    tokens = pairs.reshape(count, length + 1, model.width)[:, :length]
    tokens = tap("token_embedding", None, tokens, everywhere)
    if model.positions == "rope" and not tap.wants("position_embedding"):
        return tap("embedding", None, tokens, everywhere)
    positions = tap("position_embedding", None, added_positions(model, length), everywhere)
    return tap("embedding", None, tokens + positions, everywhere)


def added_positions(model: IclTransformerModel, length: int) -> Float[Array, "position channel"]:
    """What is added to the tokens for their place: nothing with rotary positions."""
    if model.learned_positions is not None:
        return model.learned_positions.weight.T[:length]
    if model.positions == "sinusoidal":
        return jnp.asarray(sinusoids(length, model.width, model.position_base))
    return jnp.zeros((length, model.width))


def angles(length: int, channels: int, base: float) -> Float[np.ndarray, "position channel"]:
    """t / base^(2m / channels) for token t and channel pair m = channel // 2, in radians."""
    pair = np.arange(channels) // 2
    return np.arange(length)[:, None] / np.power(base, 2 * pair / channels)[None, :]


def sinusoids(length: int, channels: int, base: float) -> Float[np.ndarray, "position channel"]:
    """Sines on even channels and cosines on odd ones."""
    turned = angles(length, channels, base)
    return np.where(np.arange(channels) % 2 == 0, np.sin(turned), np.cos(turned)).astype(np.float32)


def rotate(
    x: Float[Array, "batch position head head_channel"], positions: np.ndarray, base: float
) -> Float[Array, "batch position head head_channel"]:
    """Rotary positions on adjacent channel pairs: (x0, x1) turns by the angle of its position."""
    channels = x.shape[-1]
    turn = angles(int(positions.max()) + 1, channels, base)[positions, 0::2]
    cos, sin = (jnp.asarray(f(turn), x.dtype)[:, None, :] for f in (np.cos, np.sin))
    pairs = x.reshape(*x.shape[:-1], channels // 2, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.reshape(x.shape)


def _block(
    model: IclTransformerModel,
    block: Block,
    layer: int,
    x: Float[Array, "batch position channel"],
    tap: Tap,
    rows: np.ndarray,
) -> Float[Array, "batch row channel"]:
    """One block; its output at the token positions `rows` only (all of them but in the last block)."""
    everywhere = np.arange(x.shape[1])
    x = tap("resid_pre", layer, x, everywhere)
    normed = tap("attn_in", layer, block.attn_norm(x), everywhere)
    z = _heads(model, block.attn, layer, normed, tap, rows)
    attn_out = tap("attn_out", layer, block.attn.out(z), rows)
    x = tap("resid_mid", layer, (x if len(rows) == x.shape[1] else x[:, rows]) + attn_out, rows)
    if block.mlp is not None:
        assert block.mlp_norm is not None
        mlp_in = tap("mlp_in", layer, block.mlp_norm(x), rows)
        hidden = tap("mlp_post", layer, jax.nn.gelu(block.mlp.up(mlp_in), approximate=True), rows)
        x = x + tap("mlp_out", layer, block.mlp.down(hidden), rows)
    return tap("resid_post", layer, x, rows)


def _heads(
    model: IclTransformerModel,
    attn: Attention,
    layer: int,
    normed: Float[Array, "batch position channel"],
    tap: Tap,
    rows: np.ndarray,
) -> Float[Array, "batch row channel"]:
    """Head outputs z of all heads, side by side, for the queries at the token positions `rows`."""
    count, length, width = normed.shape
    everywhere, shape = np.arange(length), (model.heads, width // model.heads)
    q, k, v = _queries_keys_values(attn.qkv, normed, rows, shape)
    q = tap("q_unrotated", layer, q, rows)
    k = tap("k_unrotated", layer, k, everywhere)
    v = tap("v", layer, v, everywhere)
    if model.positions == "rope":
        q, k = rotate(q, rows, model.position_base), rotate(k, everywhere, model.position_base)
    q, k = tap("q", layer, q, rows), tap("k", layer, k, everywhere)

    # With a handful of tokens, sums of products in place beat thousands of 5 x 8 matrix products;
    # heads stay on the last axis (batch query key head) so that these loops are vectorised.
    scores = jnp.sum(q[:, :, None] * k[:, None], axis=-1) * shape[1] ** -0.5
    causal = (rows[:, None] >= everywhere[None, :])[:, :, None]
    scores = _shown(tap, "attn_scores", layer, jnp.where(causal, scores, MASKED), rows)
    pattern = _shown(tap, "pattern", layer, jax.nn.softmax(scores, axis=2), rows)
    z = tap("z", layer, jnp.sum(pattern[..., None] * v[:, None], axis=2), rows)
    return z.reshape(count, len(rows), width)


def _queries_keys_values(
    qkv: Linear, normed: Array, rows: np.ndarray, shape: tuple[int, int]
) -> tuple[Array, Array, Array]:
    """Queries at `rows`, keys and values everywhere, each (batch, position, head, head_channel)."""
    count, length, width = normed.shape
    if len(rows) == length:
        joint = qkv(normed).reshape(count, length, 3, *shape)
        return joint[:, :, 0], joint[:, :, 1], joint[:, :, 2]
    q = normed[:, rows] @ qkv.weight[:width].T
    joint = (normed @ qkv.weight[width:].T).reshape(count, length, 2, *shape)
    return q.reshape(count, len(rows), *shape), joint[:, :, 0], joint[:, :, 1]


def _shown(tap: Tap, site: str, layer: int, value: Array, rows: np.ndarray) -> Array:
    """Pass an attention map to the tap in the order of its site (batch head query key), if it is wanted."""
    if not tap.wants(site, layer):
        return value
    shown = tap(site, layer, jnp.transpose(value, (0, 3, 1, 2)), rows)
    return jnp.transpose(shown, (0, 2, 3, 1))
