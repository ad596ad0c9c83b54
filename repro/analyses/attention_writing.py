"""Attention of a head to a name against what the head writes along that name's unembedding.

Source: Wang et al. 2022, arXiv 2211.00593, section on name movers (copying, scatter plots).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repro.analyses import lm_inputs as lm
from repro.analyses.attention_patterns import chosen_heads
from repro.analyses.lm_direct import readout
from repro.analyses.lm_measure_specs import AttentionWriting
from repro.analyses.logit_attribution import CONVENTIONS
from repro.data.token_pairs import PromptPairs
from repro.expressions import pearson
from repro.interventions.lm_edits import At, Read
from repro.interventions.lm_run import run as forward
from repro.models.language_model import LanguageModel
from repro.results import Result


def run(subject: Any, data: Any, record: Any, directory: Path | None, spec: AttentionWriting) -> Result:
    """Attention from `spec.query` to each name (summed over its positions), and <head output, name's vector>.

    Arrays: attention, writing [head, name, prompt]; correlation [head, name] (Pearson over prompts);
    correlation_all [head], over the points of all names. Scalars: correlation.min and correlation.mean of
    correlation_all.
    """
    model = lm.model_of(subject)
    pairs = lm.pairs_of(model, data)
    for names in spec.names.values():
        lm.named_positions(pairs, [*names, spec.query], "analysis.names")
    chosen = chosen_heads(model, spec.heads)
    pieces = [lm.part_of(pairs, rows) for rows in lm.chunks(len(pairs), spec.batch)]
    parts = [_points(model, piece, spec, chosen) for piece in pieces]
    attention, writing = (torch.cat(each, dim=-1) for each in zip(*parts, strict=True))
    heads, names = {"head": [f"{layer}.{head}" for layer, head in chosen]}, {"name": list(spec.names)}
    both = [(a.numpy(), w.numpy()) for a, w in zip(attention, writing, strict=True)]
    single = torch.tensor([[pearson(x, y) for x, y in zip(a, w, strict=True)] for a, w in both])
    pooled = torch.tensor([pearson(a, w) for a, w in both])
    prompt = {"prompt": len(pairs)}
    arrays = {
        "attention": lm.array(attention, {**heads, **names, **prompt}),
        "writing": lm.array(writing, {**heads, **names, **prompt}, "logit" if spec.norm == "frozen" else "1"),
        "correlation": lm.array(single, {**heads, **names}),
        "correlation_all": lm.array(pooled, heads),
    }
    scalars = {"correlation.min": float(pooled.min()), "correlation.mean": float(pooled.mean())}
    return Result(scalars, arrays, {"convention": CONVENTIONS[spec.norm]})


def _points(
    model: LanguageModel, pairs: PromptPairs, spec: AttentionWriting, chosen: list[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """Attention and writing [head, name, B], in float64."""
    batch, positions = lm.side(pairs, spec.which)
    query = positions[spec.query]
    layers = sorted({layer for layer, _ in chosen})
    patterns = {layer: Read(At("pattern", layer, positions=query)) for layer in layers}
    outputs = {layer: Read(At("z", layer, positions=query)) for layer in layers}
    last = Read(At("resid_post", model.depth - 1, positions=query))
    found = forward(model, batch, reads=[*patterns.values(), *outputs.values(), last], logits=None)
    first = [positions[names[0]] for names in spec.names.values()]
    tokens = torch.stack([lm.at_rows(batch.tokens, column) for column in first], dim=1)
    vectors, _ = readout(model, found[last][:, 0], tokens, spec.norm)
    attention, writing = [], []
    for layer, head in chosen:
        pattern = found[patterns[layer]][:, head, 0].cpu().double()
        sums = [
            torch.stack([lm.at_rows(pattern, positions[name]) for name in names]).sum(0)
            for names in spec.names.values()
        ]
        attention.append(torch.stack(sums))
        matrix = model.layers[layer].output_matrix[head].cpu().double()
        written = found[outputs[layer]][:, 0, head].cpu().double() @ matrix
        writing.append(torch.einsum("bd,bnd->nb", written, vectors))
    return torch.stack(attention), torch.stack(writing)
