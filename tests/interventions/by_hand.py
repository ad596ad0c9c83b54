"""The transformer written out in loops over one sequence, head, query and key, in NumPy.

Written apart from the code under test, and only for what is tested: attention only or with an MLP, any
depth. `override(site, layer, value)` may hand back another value at each named site; values have no batch
axis. Sites: token_embedding, embedding, resid_post (S, d); q, k, v (H, S, d/H); attn_scores, pattern
(H, S, S); logits (S, outputs).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Override = Callable[[str, int | None, np.ndarray], np.ndarray]


def as_is(site: str, layer: int | None, value: np.ndarray) -> np.ndarray:
    return value


def norm(x: np.ndarray, layer_norm: Any) -> np.ndarray:
    deviation = math.sqrt(sum((c - x.mean()) ** 2 for c in x) / len(x) + 1e-5)
    return (x - x.mean()) / deviation * np.asarray(layer_norm.weight) + np.asarray(layer_norm.bias)


def turned(x: np.ndarray, position: int, base: float) -> np.ndarray:
    """Rotary position: each pair of neighbouring channels is a complex number that turns."""
    out = x.copy()
    for pair in range(len(x) // 2):
        angle = position / base ** (2 * pair / len(x))
        number = complex(x[2 * pair], x[2 * pair + 1]) * complex(math.cos(angle), math.sin(angle))
        out[2 * pair], out[2 * pair + 1] = number.real, number.imag
    return out


def softmax(row: np.ndarray) -> np.ndarray:
    weights = np.exp(row - row.max())
    return weights / weights.sum()


def embedded(model: Any, examples: np.ndarray, labels: np.ndarray, override: Override = as_is) -> np.ndarray:
    """Tokens with positions added, (S, d)."""
    tokens = []
    for item, (features, label) in enumerate(zip(examples, labels, strict=True)):
        tokens.append(
            np.asarray(model.example_embed.weight) @ features + np.asarray(model.example_embed.bias)
        )
        if item < len(labels) - 1:
            tokens.append(np.asarray(model.label_embed.weight)[:, label])
    tokens = override("token_embedding", None, np.array(tokens))
    for position in range(len(tokens)):
        if model.learned_positions is not None:
            tokens[position] = tokens[position] + np.asarray(model.learned_positions.weight)[:, position]
    return override("embedding", None, tokens)


def attended(model: Any, layer: int, stream: np.ndarray, override: Override) -> np.ndarray:
    """What attention of one block adds to the residual stream, (S, d)."""
    attn, heads, length = model.blocks[layer].attn, model.heads, len(stream)
    width = stream.shape[1] // heads
    weight = np.asarray(attn.qkv.weight).reshape(3, heads, width, -1)
    normed = [norm(x, model.blocks[layer].attn_norm) for x in stream]
    q, k, v = (
        np.array([[weight[part, head] @ x for x in normed] for head in range(heads)]) for part in range(3)
    )
    if model.positions == "rope":
        for head in range(heads):
            for position in range(length):
                q[head, position] = turned(q[head, position], position, model.position_base)
                k[head, position] = turned(k[head, position], position, model.position_base)
    q, k, v = override("q", layer, q), override("k", layer, k), override("v", layer, v)
    scores = np.full((heads, length, length), -1e20)
    for head in range(heads):
        for query in range(length):
            for key in range(query + 1):
                scores[head, query, key] = q[head, query] @ k[head, key] / math.sqrt(width)
    scores = override("attn_scores", layer, scores)
    pattern = override("pattern", layer, np.array([[softmax(row) for row in head] for head in scores]))
    z = [
        np.concatenate(
            [sum(pattern[head, query, key] * v[head, key] for key in range(length)) for head in range(heads)]
        )
        for query in range(length)
    ]
    return np.array([np.asarray(attn.out.weight) @ one for one in z])


def forward(
    model: Any, examples: np.ndarray, labels: np.ndarray, override: Override = as_is
) -> tuple[np.ndarray, dict[tuple[str, int | None], np.ndarray]]:
    """Logits (S, outputs) of one sequence, and every value that was shown to `override`, after it."""
    seen: dict[tuple[str, int | None], np.ndarray] = {}

    def show(site: str, layer: int | None, value: np.ndarray) -> np.ndarray:
        seen[site, layer] = override(site, layer, value.copy())
        return seen[site, layer]

    stream = embedded(model, examples, labels, show)
    for layer, block in enumerate(model.blocks):
        stream = stream + attended(model, layer, stream, show)
        if block.mlp is not None:
            up = [
                np.asarray(block.mlp.up.weight) @ norm(x, block.mlp_norm) + np.asarray(block.mlp.up.bias)
                for x in stream
            ]
            hidden = [u * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3))) for u in up]
            down = [np.asarray(block.mlp.down.weight) @ h + np.asarray(block.mlp.down.bias) for h in hidden]
            stream = stream + np.array(down)
        stream = show("resid_post", layer, stream)
    final = [norm(x, model.final_norm) for x in stream]
    logits = np.array([np.asarray(model.unembed.weight) @ x + np.asarray(model.unembed.bias) for x in final])
    return show("logits", None, logits), seen
