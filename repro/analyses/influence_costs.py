"""What influence scores need before they run: passes, matrix products, memory. Imports no PyTorch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repro.costs import Cost, Work
from repro.models.shapes import DTYPE_BYTES

if TYPE_CHECKING:
    from repro.analyses.influence_specs import InfluenceAnalysis

PUBLISHED = (4656, 481, 512)  # blocks to train on, queries, tokens: where only reading the data tells
FUSED = ("gpt2", "gpt_neox")  # families that project queries, keys and values at once
EIGEN = 25  # operations of a symmetric eigendecomposition, times the cube of the side
QUERIES = 32  # in memory together at least
ROOM = 2 * 2**30  # bytes of query gradients, if more than so many queries fit in (on a GPU more)


def cost(shape: Any, data: Any, spec: InfluenceAnalysis) -> Cost:
    """Stages of the strategy, and pairwise scores of all queries, each a pass over all training blocks."""
    (blocks, queries, length), said = sizes(data)
    sides = shape.layers * modules(shape)
    entries = sum(out * inputs for out, inputs in sides)
    squares = sum(out**2 + inputs**2 for out, inputs in sides)
    by_query = entries if spec.rank is None else spec.rank * sum(out + inputs for out, inputs in sides)
    asked = 1 if spec.sum_queries else queries
    groups = _groups(asked, by_query * DTYPE_BYTES[spec.dtype], spec)
    tokens, batch = blocks * length, 64
    works, flops = [], 0.0

    def passes(says: str, count: int, times: int = 1) -> float:
        """Forward and back; logits are counted as operations, and come a few at a time."""
        works.append(Work(says, count * times, length, backwards=1, unembedded=0, batch=min(batch, count)))
        return 2 * count * times * length * shape.unembedding_flops

    if spec.strategy in ("kfac", "ekfac"):
        flops += passes("covariances", blocks)
        flops += tokens * squares + EIGEN * sum(out**3 + inputs**3 for out, inputs in sides)
    if spec.strategy in ("ekfac", "diagonal"):
        flops += passes("eigenvalues", blocks)
        flops += 2 * tokens * (entries + (squares if spec.strategy == "ekfac" else 0))
    flops += passes("queries", queries)
    there = sum(out * inputs * (out + inputs) for out, inputs in sides) if spec.strategy != "identity" else 0
    flops += 2 * queries * (length * (entries + squares) + 2 * there)
    flops += passes(f"scores, {groups} groups of queries", blocks, groups)
    flops += 2 * tokens * entries * (asked if spec.per_token else groups) + 2 * blocks * asked * entries
    if spec.self_influence:
        flops += passes("self-influence", blocks)
        flops += 2 * tokens * (entries + squares)
    held = (3 * squares + entries) * DTYPE_BYTES[spec.dtype] + min(
        asked * by_query * DTYPE_BYTES[spec.dtype], max(ROOM, QUERIES * by_query * DTYPE_BYTES[spec.dtype])
    )
    lines = (
        f"{blocks:,} training blocks and {queries:,} queries of {length} tokens{said}; {len(sides)} modules"
        f" of {entries:,} weights and biases in all",
        f"{held / 2**30:.1f} GiB of factors and query gradients beside weights and activations",
    )
    if spec.modules is not None:
        lines = (*lines, "analysis.modules: counted as if all projections were looked at")
    return Cost(tuple(works), flops, lines, held_bytes=held)


def _groups(asked: int, each: float, spec: InfluenceAnalysis) -> int:
    """Passes over the training blocks; each: bytes of a query's gradients."""
    if spec.query_accumulation == "auto":
        return math.ceil(asked / max(QUERIES, ROOM // each))
    return math.ceil(
        asked / (spec.query_accumulation * (QUERIES if spec.query_batch == "auto" else spec.query_batch))
    )


def modules(shape: Any) -> list[tuple[int, int]]:
    """Outputs, and inputs with the bias column, of the projections of one layer."""
    family = shape._of_family
    inner, kv = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    qkv, out, mlp = (
        int(default if said is None else said)
        for said, default in (
            (shape.qkv_bias, family.qkv_bias), (shape.out_bias, family.out_bias),
            (shape.mlp_bias, family.mlp_bias),
        )
    )  # fmt: skip
    reads = [(inner + 2 * kv, shape.width + qkv)]
    if shape.family not in FUSED:
        reads = [(inner, shape.width + qkv), *2 * [(kv, shape.width + qkv)]]
    hidden = (2 if family.gated else 1) * [(shape.mlp_width, shape.width + mlp)]
    return [*reads, (shape.width, inner + out), *hidden, (shape.width, shape.mlp_width + mlp)]


def sizes(data: Any) -> tuple[tuple[int, int, int], str]:
    """Blocks, queries and tokens of a block, and what of that is assumed."""
    if getattr(data, "kind", "") == "token_blocks" and Path(data.path).expanduser().suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(Path(data.path).expanduser(), framework="numpy") as file:
            train, query = (file.get_slice(name).get_shape() for name in ("train", "query"))
        return (train[0], query[0], train[1]), ""
    train, query = getattr(data, "train", None), getattr(data, "query", None)
    length = getattr(data, "block", PUBLISHED[2])
    if train is not None and query is not None:
        return (train, query, length), ""
    return (train or PUBLISHED[0], query or PUBLISHED[1], length), ", assumed as published"


def retrainings(count: int, share: float, shape: Any, data: Any, epochs: int = 3) -> Cost:
    """So many trainings on a share of the blocks, and the losses of the queries after each."""
    (blocks, queries, length), said = sizes(data)
    seen = round(share * blocks)
    says = f"{count} retrainings: {epochs} epochs of {seen:,} blocks"
    train = Work(says, count * epochs * seen, length, backwards=1, weight_gradients=True,
                 unembedded=length, batch=8)  # fmt: skip
    measured = Work("their losses of the queries", count * queries, length, unembedded=length, batch=25)
    lines = (f"{count} retrainings, {epochs} epochs of {seen:,} blocks each{said}; or less",)
    return Cost((train, measured), lines=lines)
