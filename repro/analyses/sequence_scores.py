"""What scores of heads on sequences of tokens share: means, variances, and where high scores are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from repro.data.token_sequences import TokenSequence
from repro.errors import UserError
from repro.models.language_model import LanguageModel
from repro.results import NamedArray, Result
from repro.shards import join


def sequences_of(model: LanguageModel, data: Any, kind: str) -> list[TokenSequence]:
    """The data's repeated or distinct sequences, which fit the model's context and vocabulary."""
    if not hasattr(data, kind):
        raise UserError(
            "data: it needs sequences of tokens. Valid choices: data=induction_sequences,"
            " data=token_sequences"
        )
    found: list[TokenSequence] = getattr(data, kind)(model)
    for number, one in enumerate(found):
        if len(one.tokens) > model.max_positions:
            raise UserError(
                f"data: sequence {number} has {len(one.tokens)} tokens; the model takes at most"
                f" {model.max_positions}. Give shorter ones (data.count, data.first, data.step)"
            )
        if max(one.tokens) >= model.vocabulary:
            raise UserError(
                f"data: sequence {number} has token id {max(one.tokens)}; the model has 0 to"
                f" {model.vocabulary - 1}. Use the tokenizer of the model"
            )
    return found


def result_of(scores: Sequence[np.ndarray], model: LanguageModel, lengths: Sequence[int]) -> Result:
    """per_sequence [sequence, layer, head] and length [sequence]; the sizes of the model as scalars."""
    axes: dict[str, Any] = {"sequence": len(scores)}
    table: dict[str, Any] = {"layer": list(range(model.depth)), "head": list(range(model.heads))}
    per_sequence = NamedArray(np.stack(scores), {**axes, **table})
    return Result(sizes_of(model), {
        "per_sequence": per_sequence, "length": NamedArray(np.asarray(lengths), axes, "token"),
    })  # fmt: skip


def sizes_of(model: LanguageModel) -> dict[str, float]:
    """Heads and FFNs, and the parameters of all attention and of all FFNs, norms left out, in billions."""
    total = dict.fromkeys(("attention", "ffn"), 0)
    for layer in model.layers:
        norms = {id(norm): norm for norm in (layer.first_norm, layer.second_norm)}
        attention = _parameters(layer.attention)
        total["attention"] += attention
        total["ffn"] += _parameters(layer.block) - attention - sum(map(_parameters, norms.values()))
    return {
        "heads": float(model.depth * model.heads), "ffns": float(model.depth),
        **{f"{name}.billions": count / 1e9 for name, count in total.items()},
    }  # fmt: skip


def _parameters(module: Any) -> int:
    return sum(weight.numel() for weight in module.parameters())


def merged(parts: Sequence[Result]) -> Result:
    """Mean and unbiased variance over sequences [layer, head], and what the claims ask of the means.

    Scalars: max; largest.layer, largest.head; above_half.count: heads above half the largest score, and
    .share of all heads; later_half.above_half: share of those heads in the layers of the second half
    (31 and more of 64, from 1, is in it); later_third.top_tenth: share of the highest tenth of all heads
    that is behind the first 40 of 64 layers; sequences; heads, ffns, attention.billions, ffn.billions (see
    `sizes_of`).
    """
    result = join(parts, "sequence")
    values = result.arrays["per_sequence"]
    axes = {name: labels for name, labels in values.axes.items() if name != "sequence"}
    mean, count = values.values.mean(0), len(values.values)
    variance = values.values.var(0, ddof=1) if count > 1 else np.full_like(mean, np.nan)
    result.arrays["score"] = NamedArray(mean, axes)
    result.arrays["variance"] = NamedArray(variance, axes)
    result.scalars.update(places(mean), sequences=float(count))
    return result


def places(score: np.ndarray) -> dict[str, float]:
    """Where high scores of a table [layer, head] are: see `merged`."""
    depth, heads = score.shape
    flat, layer = score.reshape(-1), np.repeat(np.arange(depth), heads)
    above = flat > 0.5 * flat.max()
    tenth = np.argsort(-flat, kind="stable")[: max(1, len(flat) // 10)]
    best = int(flat.argmax())
    # Published layers count from 1: 31+ of 64 is index 30 and above, 41+ is index 40 and above.
    return {
        "max": float(flat.max()),
        "largest.layer": float(best // heads),
        "largest.head": float(best % heads),
        "above_half.count": float(above.sum()),
        "above_half.share": float(above.mean()),
        "later_half.above_half": float((layer[above] >= depth * 30 / 64).mean()) if above.any() else 0.0,
        "later_third.top_tenth": float((layer[tenth] >= depth * 40 / 64).mean()),
    }
