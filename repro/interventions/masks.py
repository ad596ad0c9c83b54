"""Heads and FFNs that are removed from a model, and in which order: masks, rankings, percentages.

A removed head adds nothing to what its layer writes; the output bias stays. A removed FFN writes nothing, its
bias included. Source: Bansal et al. 2023, arXiv 2212.09095, section on pruning, and the released code.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Mask:
    """What is removed. heads: of each layer, ascending. ffns: of each layer, whether."""

    heads: tuple[tuple[int, ...], ...]
    ffns: tuple[bool, ...]

    @classmethod
    def of(cls, depth: int, heads: Iterable[tuple[int, int]] = (), ffns: Iterable[int] = ()) -> Mask:
        """A mask for a model of `depth` layers. heads: (layer, head)."""
        by_layer: list[set[int]] = [set() for _ in range(depth)]
        for layer, head in heads:
            by_layer[layer].add(head)
        gone = set(ffns)
        if gone - set(range(depth)):
            raise ValueError(f"FFNs {sorted(gone)} of a model with {depth} layers")
        return cls(tuple(tuple(sorted(some)) for some in by_layer), tuple(at in gone for at in range(depth)))

    @property
    def digest(self) -> str:
        """A name for it, the same for equal masks."""
        text = f"{self.heads} {self.ffns}".encode()
        return hashlib.sha256(text).hexdigest()[:16]


def rank_heads(score: Float[np.ndarray, "layer head"]) -> Int[np.ndarray, " rank"]:
    """Flat numbers (layer * heads + head) in order of removal: least important first, ties as they lie."""
    return np.argsort(np.asarray(score).reshape(-1), kind="stable")


def rank_ffns(importance: Float[np.ndarray, " layer"]) -> Int[np.ndarray, " rank"]:
    """Layers in the order of removal: the least important FFN first, ties in the order of layers."""
    return np.argsort(np.asarray(importance), kind="stable")


def count(percent: float, of: int) -> int:
    """How many components `percent` of `of` are, rounded down: floor(percent * of / 100)."""
    return math.floor(percent * of / 100)


def prune(
    depth: int, heads: int, head_rank: Sequence[int] | np.ndarray = (), head_percent: float = 0,
    ffn_rank: Sequence[int] | np.ndarray = (), ffn_percent: float = 0,
) -> Mask:  # fmt: skip
    """The mask that removes the first so many percent of each ranking."""
    gone = [divmod(int(flat), heads) for flat in head_rank[: count(head_percent, depth * heads)]]
    return Mask.of(depth, gone, [int(layer) for layer in ffn_rank[: count(ffn_percent, depth)]])
