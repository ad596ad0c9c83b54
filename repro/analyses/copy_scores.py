"""OV copy scores: does a head that attends to a name say that name?

Source: Wang et al. 2022, arXiv 2211.00593, section on name movers. The residual stream after the first
block at a name's token goes through the norm of the head's layer, its value and output matrices (value bias
in, output bias out), the final norm and the unembedding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repro.analyses import lm_inputs as lm
from repro.analyses.attention_patterns import chosen_heads
from repro.analyses.lm_measure_specs import CopyScores
from repro.data.token_pairs import PromptPairs
from repro.interventions.lm_edits import At
from repro.interventions.lm_run import run as forward
from repro.models.language_model import LanguageModel
from repro.progress import Progress, progress
from repro.results import Result

SIGNS = {"positive": 1.0, "negative": -1.0}


def run(subject: Any, data: Any, record: Any, directory: Path | None, spec: CopyScores) -> Result:
    """Whether the name is among the `top` tokens of its own OV output, and of the negative of that.

    Arrays: score [sign, head], the share of names (sign "positive" and "negative", heads labelled
    "layer.head"); score_by_position [sign, head, position]; hit [sign, head, position, prompt] (0 or 1);
    with all heads also copying and anti_copying [layer, head]. Scalars: positive.mean and negative.mean
    over the heads, positive.min and negative.min.
    """
    model = lm.model_of(subject)
    pairs = lm.pairs_of(model, data)
    positions = lm.named_positions(pairs, spec.positions, "analysis.positions")
    heads = chosen_heads(model, spec.heads)
    with progress(len(heads) * len(pairs), "copy scores", "prompts") as bar:
        parts = [
            _hits(model, lm.part_of(pairs, rows), heads, positions, spec.top, bar)
            for rows in lm.chunks(len(pairs), spec.batch)
        ]
    hits = torch.cat(parts, dim=-1)
    axes = {"sign": list(SIGNS), "head": [f"{layer}.{head}" for layer, head in heads]}
    by_position = hits.double().mean(-1)
    score = by_position.mean(-1)
    arrays = {
        "score": lm.array(score, axes),
        "score_by_position": lm.array(by_position, {**axes, "position": positions}),
        "hit": lm.array(hits.to(torch.uint8), {**axes, "position": positions, "prompt": len(pairs)}),
    }
    if spec.heads is None:
        table = {"layer": model.depth, "head": model.heads}
        for name, values in zip(("copying", "anti_copying"), score, strict=True):
            arrays[name] = lm.array(values.view(model.depth, model.heads), table)
    scalars = {}
    for sign, values in zip(SIGNS, score, strict=True):
        scalars |= {f"{sign}.mean": float(values.mean()), f"{sign}.min": float(values.min())}
    return Result(scalars, arrays)


def _hits(
    model: LanguageModel,
    pairs: PromptPairs,
    heads: list[tuple[int, int]],
    positions: list[str],
    top: int,
    bar: Progress,
) -> Tensor:
    """[sign, head, position, B] booleans."""
    batch = pairs.clean
    columns = torch.stack([pairs.positions[name] for name in positions], dim=1)
    place = At("resid_post", 0, positions=columns)
    stream = forward(model, batch, reads=[place], logits=None)[place]
    tokens = batch.tokens.gather(1, columns)
    where = batch.position_ids.gather(1, columns).to(stream.device)
    found: list[Tensor] = []
    shared = model.heads // model.kv_heads
    with torch.no_grad():
        for index, head in heads:
            layer = model.layers[index]
            values = layer.project(layer.norm1(stream), where)[2][:, :, head // shared]
            written = values @ layer.output_matrix[head]
            found += [top_hit(model, sign * written, tokens, top) for sign in SIGNS.values()]
            bar.advance(len(tokens))
    return torch.stack(found).view(len(heads), len(SIGNS), *tokens.shape).permute(1, 0, 3, 2)


def top_hit(model: LanguageModel, written: Tensor, tokens: Tensor, top: int) -> Tensor:
    """Whether fewer than `top` tokens have a higher logit than the given one [B, P], of streams [B, P, d]."""
    logits = model.unembed(model.final_norm(written))
    own = logits.gather(-1, tokens[..., None].to(logits.device))
    return ((logits > own).sum(-1) < top).cpu()
