"""Weights of heads and MLP units as vectors of the residual stream; norms and biases are ignored.

Source: Dar et al. 2023 (embedding space), Geva et al. 2022 (MLP values), as used in Geva et al. 2023, arXiv
2304.14767. Rows of E W E^T are had one by one: (rows W) is a vector, read through E; no V x V matrix is made.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repro.models.language_model import Layer


@torch.no_grad()
def written(layer: Layer, rows: Tensor) -> Tensor:
    """rows W_V W_O by head, [N, H, d]: what each head writes when it attends to vectors [N, d]."""
    value = _linear(layer, rows, 2)
    return layer.head_out(value.repeat_interleave(layer.heads // layer.kv_heads, dim=1))


@torch.no_grad()
def looked_for(layer: Layer, rows: Tensor) -> Tensor:
    """rows W_Q W_K^T by head, [N, H, d]: E of it ranks the keys that each head looks for from vectors [N, d].

    Without rotary positions, norms of queries and keys, and scaling.
    """
    query = _linear(layer, rows, 0)
    identity = torch.eye(rows.shape[-1], dtype=rows.dtype, device=rows.device)
    keys = _linear(layer, identity, 1).repeat_interleave(layer.heads // layer.kv_heads, dim=1)  # [d, H, D]
    return torch.einsum("nhc,dhc->nhd", query, keys)


def values(layer: Layer) -> Tensor:
    """MLP value vectors, [F, d]: what each hidden unit adds to the stream when it is one."""
    weight: Tensor = layer.down.weight  # type: ignore[assignment]
    return (weight.T if isinstance(layer.down, nn.Linear) else weight).detach()


def _linear(layer: Layer, rows: Tensor, which: int) -> Tensor:
    """Queries (0), keys (1) or values (2) of vectors [N, d] without bias and rotation, [N, heads, D]."""
    inner = layer.attention
    if which < 2 and hasattr(inner, "q_norm"):  # norms are not linear: Qwen3
        out = nn.functional.linear(rows, (inner.q_proj, inner.k_proj)[which].weight)
        return out.unflatten(-1, (-1, inner.head_dim))
    # At position 0 nothing is rotated; the bias is what nothing gives.
    both = torch.cat([rows, torch.zeros_like(rows[:1])])[:, None]
    found = layer.project(both, torch.zeros(len(both), 1, dtype=torch.long, device=rows.device))[which][:, 0]
    return found[:-1] - found[-1:]
