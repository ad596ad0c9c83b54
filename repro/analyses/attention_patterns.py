"""Attention between named positions, plain and weighted by values, and whole patterns of single prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repro.analyses import lm_inputs as lm
from repro.analyses.head_specs import split_head
from repro.analyses.lm_measure_specs import AttentionPatterns
from repro.data.token_batch import TokenBatch
from repro.data.token_pairs import PromptPairs
from repro.errors import UserError
from repro.interventions.lm_edits import At, Read
from repro.interventions.lm_run import run as forward
from repro.models.language_model import LanguageModel
from repro.results import NamedArray, Result


def run(subject: Any, data: Any, record: Any, directory: Path | None, spec: AttentionPatterns) -> Result:
    """Mean attention from queries to keys, and the patterns of `spec.panels` with their tokens.

    Value-weighted is pattern[query, key] times the norm of the value vector at the key. Arrays: attention,
    weighted [head, query, key], means over prompts, heads labelled "layer.head"; attention_per_prompt,
    weighted_per_prompt [head, query, key, prompt]; for every panel i panel_I and panel_I_weighted [head,
    query_token, key_token], tokens as text (ids where there is no tokenizer), padding left out.
    Scalars: attention.<query>.<key> and weighted.<query>.<key>, also over heads.
    """
    model = lm.model_of(subject)
    pairs = lm.pairs_of(model, data)
    queries = lm.named_positions(pairs, spec.queries, "analysis.queries")
    keys = lm.named_positions(pairs, spec.keys, "analysis.keys")
    heads = chosen_heads(model, spec.heads)
    late = [prompt for prompt in spec.panels if prompt >= len(pairs)]
    if late:
        raise UserError(f"analysis.panels: got prompt {late[0]}. Valid: 0 to {len(pairs) - 1}")
    names = [f"{layer}.{head}" for layer, head in heads]
    result = Result({}, {})
    if keys:
        parts = [
            _between(model, lm.part_of(pairs, rows), spec.which, heads, queries, keys)
            for rows in lm.chunks(len(pairs), spec.batch)
        ]
        values = torch.cat(parts, dim=-1)
        axes = {"head": names, "query": queries, "key": keys}
        for name, kind in zip(("attention", "weighted"), values, strict=True):
            mean = kind.mean(-1)
            result.arrays[name] = lm.array(mean, axes)
            result.arrays[f"{name}_per_prompt"] = lm.array(kind.float(), {**axes, "prompt": len(pairs)})
            for i, query in enumerate(queries):
                for j, key in enumerate(keys):
                    result.scalars[f"{name}.{query}.{key}"] = float(mean[:, i, j].mean())
    for prompt in spec.panels:
        batch, _ = lm.side(pairs, spec.which)
        result.arrays.update(_panel(model, batch.rows([prompt]), heads, names, f"panel_{prompt}"))
    return result


def chosen_heads(model: LanguageModel, heads: Sequence[str] | None) -> list[tuple[int, int]]:
    """(layer, head) of the heads asked for; null: all. Raises `UserError` for one that does not exist."""
    if heads is None:
        return [(layer, head) for layer in range(model.depth) for head in range(model.heads)]
    for head in heads:
        model.check_head(*split_head(head), "analysis.heads")
    return [split_head(head) for head in heads]


def _patterns(
    model: LanguageModel, batch: TokenBatch, heads: Sequence[tuple[int, int]], queries: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Patterns [head, B, query, T], and values' norms [head, B, T], in float64."""
    layers = sorted({layer for layer, _ in heads})
    patterns = {layer: Read(At("pattern", layer, positions=queries)) for layer in layers}
    norms = {layer: Read(At("v", layer), reduce=lambda v: v.double().norm(dim=-1).cpu()) for layer in layers}
    found = forward(model, batch, reads=[*patterns.values(), *norms.values()], logits=None)
    shared = model.heads // model.kv_heads
    pattern = torch.stack([found[patterns[layer]][:, head].cpu().double() for layer, head in heads])
    norm = torch.stack([found[norms[layer]][:, :, head // shared] for layer, head in heads])
    return pattern, norm


def _between(
    model: LanguageModel, pairs: PromptPairs, which: str, heads: Sequence[tuple[int, int]],
    queries: list[str], keys: list[str],
) -> Tensor:  # fmt: skip
    """[kind, head, query, key, B]: plain and value-weighted."""
    batch, positions = lm.side(pairs, which)
    rows = torch.stack([positions[name] for name in queries], dim=1)
    columns = torch.stack([positions[name] for name in keys], dim=1)
    pattern, norm = _patterns(model, batch, heads, rows)
    index = columns[None, :, None].expand(len(heads), -1, len(queries), -1)
    plain = pattern.gather(-1, index)
    weighted = plain * norm[:, :, None].expand(-1, -1, len(queries), -1).gather(-1, index)
    return torch.stack([plain, weighted]).permute(0, 1, 3, 4, 2)


def _panel(
    model: LanguageModel, batch: TokenBatch, heads: Sequence[tuple[int, int]], names: list[str], name: str
) -> dict[str, NamedArray]:
    real = batch.mask[0].nonzero().flatten()
    pattern, norm = _patterns(model, batch, heads, None)
    kept = pattern[:, 0][:, real][:, :, real]
    tokens = token_texts(model, batch.tokens[0, real])
    axes = {"head": names, "query_token": tokens, "key_token": tokens}
    weighted = kept * norm[:, 0, None, real]
    return {name: lm.array(kept.float(), axes), f"{name}_weighted": lm.array(weighted.float(), axes)}


def token_texts(model: LanguageModel, tokens: Tensor) -> list[str]:
    """Tokens as people read them; their ids where the model has no tokenizer."""
    if model.tokenizer is None:
        return [str(token) for token in tokens.tolist()]
    return [model.tokenizer.decode([token]).strip() or "space" for token in tokens.tolist()]
