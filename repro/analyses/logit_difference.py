"""Logit difference, ranks and probabilities of the answer, and where heads look from the last token.

Source: Wang et al. 2022, arXiv 2211.00593, section 2 (metrics).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repro.analyses import lm_inputs as lm
from repro.analyses.head_specs import split_head
from repro.analyses.lm_measure_specs import LogitDifference
from repro.data.token_batch import TokenBatch
from repro.data.token_pairs import PromptPairs
from repro.interventions.lm_edits import At, Read
from repro.interventions.lm_run import run as forward
from repro.models.language_model import LanguageModel
from repro.results import Result


def run(subject: Any, data: Any, record: Any, directory: Path | None, spec: LogitDifference) -> Result:
    """Measure each prompt at END.

    Arrays over prompts: logit_difference (answer minus wrong, logit), answer_logit, wrong_logit,
    answer_probability, wrong_probability, answer_rank (0: the highest logit), group. attention
    [key, layer, head] from `spec.query`, the mean over prompts; attention_per_prompt [key, layer, head,
    prompt].
    Scalars: logit_difference.mean, .sd, .se; answer_above_wrong and wrong_above_answer (shares of prompts);
    answer_probability.mean, answer_rank.mean, answer_top (share at rank 0); attention.<key> (mean over
    `spec.heads` and prompts).
    """
    model = lm.model_of(subject)
    pairs = lm.pairs_of(model, data)
    keys = lm.named_positions(pairs, spec.keys, "analysis.keys")
    for head in spec.heads:
        model.check_head(*split_head(head), "analysis.heads")
    parts = [
        _measure(model, lm.part_of(pairs, rows), spec, keys) for rows in lm.chunks(len(pairs), spec.batch)
    ]
    found = {name: torch.cat([part[name] for part in parts], dim=-1) for name in parts[0]}
    units = {name: "logit" if "logit" in name else "1" for name in found}
    attention = found.pop("attention", None)
    arrays = {name: lm.array(value, {"prompt": len(pairs)}, units[name]) for name, value in found.items()}
    arrays["group"] = lm.array(pairs.groups, {"prompt": len(pairs)})
    result = Result(_scalars(found), arrays)
    if attention is not None:
        axes = {"key": keys, "layer": model.depth, "head": model.heads}
        arrays["attention"] = lm.array(attention.double().mean(-1), axes)
        arrays["attention_per_prompt"] = lm.array(attention, {**axes, "prompt": len(pairs)})
        chosen = [split_head(head) for head in spec.heads]
        for i, key in enumerate(keys if chosen else []):
            values = torch.stack([attention[i, layer, head] for layer, head in chosen])
            result.scalars[f"attention.{key}"] = float(values.double().mean())
    return result


def _measure(
    model: LanguageModel, pairs: PromptPairs, spec: LogitDifference, keys: list[str]
) -> dict[str, Tensor]:
    batch, positions = lm.side(pairs, spec.which)
    reads = attention_reads(model, batch, positions, spec.query, keys) if keys else []
    found = forward(model, batch, reads=reads, logits=positions[lm.ANSWER])
    assert found.logits is not None
    values = answer_measures(found.logits.cpu(), lm.answer_columns(pairs))
    if keys:
        values["attention"] = torch.stack([found[read] for read in reads], dim=1).cpu()
    return values


def attention_reads(
    model: LanguageModel, batch: TokenBatch, positions: dict[str, Tensor], query: str, keys: list[str]
) -> list[Read]:
    """Reads of [key, head, B], one a layer: attention from the named query to the named keys."""
    to = torch.stack([positions[name] for name in keys])

    def reduce(pattern: Tensor) -> Tensor:  # [B, H, 1, T]
        index = to.T[:, None].expand(-1, pattern.shape[1], -1).to(pattern.device)
        return pattern[:, :, 0].gather(-1, index).permute(2, 1, 0)

    return [
        Read(At("pattern", layer, positions=positions[query]), reduce=reduce) for layer in range(model.depth)
    ]


def answer_measures(logits: Tensor, columns: Tensor) -> dict[str, Tensor]:
    """What the logits [B, V] say about answer and wrong token (columns [B, 2]): each [B].

    Rank is the number of tokens with a higher logit.
    """
    logits = logits.double()
    chosen = logits.gather(1, columns)
    probability = logits.log_softmax(-1).gather(1, columns).exp()
    return {
        "logit_difference": chosen[:, 0] - chosen[:, 1],
        "answer_logit": chosen[:, 0],
        "wrong_logit": chosen[:, 1],
        "answer_probability": probability[:, 0],
        "wrong_probability": probability[:, 1],
        "answer_rank": (logits > chosen[:, :1]).sum(-1),
    }


def _scalars(found: dict[str, Tensor]) -> dict[str, float]:
    difference, rank = found["logit_difference"], found["answer_rank"]
    return {
        **lm.summary("logit_difference", difference),
        "answer_above_wrong": float((difference > 0).double().mean()),
        "wrong_above_answer": float((difference < 0).double().mean()),
        "answer_probability.mean": float(found["answer_probability"].mean()),
        "wrong_probability.mean": float(found["wrong_probability"].mean()),
        "answer_rank.mean": float(rank.double().mean()),
        "answer_top": float((rank == 0).double().mean()),
    }
