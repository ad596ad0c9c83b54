"""Initial weights of the in-context-learning transformer, on the published keys (sheet C.8).

The order in which keys are split is part of the published initialisation: one seed gives the same
weights here as there.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from repro.data.random_streams import Key, on_published_streams
from repro.models.icl_transformer import (
    LEARNED_POSITIONS,
    Attention,
    Block,
    IclTransformerModel,
    LayerNorm,
    Linear,
    Mlp,
)
from repro.models.published_normal import truncated_normal
from repro.models.specs import IclTransformer

LABEL_SCALE = 0.02
# Standard deviation of a standard normal variable truncated at -2 and 2.
TRUNCATED_DEVIATION = 0.87962566103423978
Draw = Callable[[Key, tuple[int, int]], Float[Array, "out in"]]


@on_published_streams
def init(spec: IclTransformer, dim: int, outputs: int, seed: int) -> IclTransformerModel:
    """A freshly initialised model for `dim`-dimensional features and `outputs` labels."""
    example_key, label_key, transformer_key, unembed_key = jax.random.split(jax.random.PRNGKey(seed), 4)
    # Two entries of this split belong to parts that the published model does not have.
    _, _, *block_keys = jax.random.split(transformer_key, spec.depth + 3)
    scale = spec.init_rescale
    return IclTransformerModel(
        example_embed=_linear(example_key, dim, spec.width, lecun_normal, scale, bias=True),
        label_embed=_linear(label_key, outputs, spec.width, label_normal, scale),
        # The published model draws the position table from the label embedding's key.
        learned_positions=(
            _linear(label_key, LEARNED_POSITIONS, spec.width, fan_in_uniform, scale)
            if spec.positions == "learned"
            else None
        ),
        blocks=tuple(_block(key, spec) for key in block_keys[: spec.depth]),
        final_norm=_norm(spec.width),
        unembed=_linear(unembed_key, spec.width, outputs, lecun_normal, scale, bias=True),
        heads=spec.heads,
        positions=spec.positions,
        position_base=spec.position_base,
    )


def lecun_normal(key: Key, shape: tuple[int, int]) -> Float[Array, "out in"]:
    """Truncated normal of variance 1 / fan-in, for a weight stored (out, in)."""
    scale = np.sqrt(np.float32(1 / shape[1])) / np.float32(TRUNCATED_DEVIATION)
    return jnp.asarray(truncated_normal(key, shape) * scale)


def label_normal(key: Key, shape: tuple[int, int]) -> Float[Array, "out in"]:
    """0.02 times a normal truncated at two standard deviations (variance not corrected for it)."""
    return jnp.asarray(np.float32(LABEL_SCALE) * truncated_normal(key, shape))


def fan_in_uniform(key: Key, shape: tuple[int, int]) -> Float[Array, "out in"]:
    """Uniform between -1 / sqrt(fan-in) and 1 / sqrt(fan-in)."""
    limit = 1 / math.sqrt(shape[1])
    return jax.random.uniform(key, shape, minval=-limit, maxval=limit)


def _linear(key: Key, fan_in: int, fan_out: int, draw: Draw, scale: float, bias: bool = False) -> Linear:
    weight_key, _ = jax.random.split(key, 2)
    weight = draw(weight_key, (fan_out, fan_in))
    return Linear(weight if scale == 1 else scale * weight, jnp.zeros(fan_out) if bias else None)


def _norm(width: int) -> LayerNorm:
    return LayerNorm(jnp.ones(width), jnp.zeros(width))


def _block(key: Key, spec: IclTransformer) -> Block:
    attn_key, mlp_key = jax.random.split(key, 2)
    qkv_key, out_key = jax.random.split(attn_key, 2)
    width, scale = spec.width, spec.init_rescale
    attn = Attention(
        _linear(qkv_key, width, 3 * width, lecun_normal, scale),
        _linear(out_key, width, width, lecun_normal, scale),
    )
    if spec.mlp_ratio is None:
        return Block(_norm(width), attn, None, None)
    up_key, down_key = jax.random.split(mlp_key, 2)
    hidden = int(width * spec.mlp_ratio)
    mlp = Mlp(
        _linear(up_key, width, hidden, lecun_normal, scale, bias=True),
        _linear(down_key, hidden, width, lecun_normal, scale, bias=True),
    )
    return Block(_norm(width), attn, _norm(width), mlp)
