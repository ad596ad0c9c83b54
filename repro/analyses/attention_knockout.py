"""Which positions the last one reads, and in which layers: attention knockout.

Source: Geva et al. 2023, arXiv 2304.14767, section 4. Method: `repro/interventions/attention_knockout.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repro.analyses import flow_means as means
from repro.analyses import lm_inputs as lm
from repro.analyses.attention_patterns import token_texts
from repro.analyses.fact_inputs import Asked, ask, common_arrays, common_scalars, facts_of
from repro.analyses.flow_specs import AttentionKnockout
from repro.data.facts_tokens import FactBatch
from repro.errors import UserError
from repro.interventions.attention_knockout import Clean, knockout, probability, window
from repro.models.language_model import LanguageModel
from repro.progress import progress
from repro.results import NamedArray, Result
from repro.shards import WHOLE, Part, join


def run(subject: Any, data: Any, record: Any, directory: Path | None, spec: AttentionKnockout) -> Result:
    """Cut the last position's attention to sets of positions, in a window of layers around every layer.

    The answer is the model's own likeliest token. Arrays by prompt: probability [prompt, set, layer] of the
    answer, layer being the window's centre (from 0); relative_change [prompt, set, layer], in % of base;
    base, answer, agrees, number, subject_first [prompt], subject_columns [prompt, column] (see
    `common_arrays`); with a sweep sweep_probability [prompt, window, set, layer].
    Means over prompts of the relative change, in %: mean, mean_low, mean_high [set, layer], the latter two
    bootstrap bands; place_mean, place_low, place_high [place, set, layer], by whether the text begins with
    the subject (first) or not (later), NaN where there are no such prompts; place_prompts [place];
    sweep_mean, sweep_low, sweep_high [window, set, layer]. For every prompt N of `spec.maps`: map_N and
    map_N_probability [position, layer], positions labelled with their tokens.
    Scalars: see `repro.analyses.flow_means.scalars`; prompts, asked, base.mean, mismatches, agreeing.share.
    """
    return merge([run_part(subject, data, directory, spec, WHOLE)], spec)


def run_part(subject: Any, data: Any, directory: Path | None, spec: AttentionKnockout, part: Part) -> Result:
    """Probabilities for some of the prompts, and all maps."""
    model = lm.model_of(subject)
    asked = ask(model, data, part, spec.batch)
    arrays = common_arrays(asked)
    base, found = _swept(model, asked, spec)
    layers: dict[str, Any] = {"set": list(spec.sets), "layer": list(range(model.depth))}
    prompts: dict[str, Any] = {"prompt": len(asked)}
    arrays["base"] = NamedArray(base, prompts)
    arrays["probability"] = NamedArray(found[:, 0], {**prompts, **layers})
    sizes = spec.sizes(model.depth)
    if len(sizes) > 1:
        axes = {**prompts, "window": sizes, **layers}
        arrays["sweep_probability"] = NamedArray(found, axes)
    if spec.maps:
        facts = facts_of(model, data)
        for number in spec.maps:
            arrays.update(_map(model, facts, number, spec))
    return Result({}, arrays, _notes(model, data, spec))


def merge(parts: Sequence[Result], spec: AttentionKnockout) -> Result:
    """Relative changes, their means with bands, and what the claims ask for."""
    result = join(parts, "prompt", add=("asked",))
    arrays = result.arrays
    result.scalars.update(common_scalars(arrays))
    change = means.relative(arrays["probability"], arrays["base"])
    arrays["relative_change"] = change
    weights = means.resampled(len(change.values), spec.resamples, spec.seed)
    arrays.update(means.with_bands("", change, weights, spec.confidence))
    arrays.update(means.by_place(change, arrays["subject_first"].values, spec))
    result.scalars.update(means.scalars(arrays["mean"]))
    result.scalars.update(means.first_layers(change))
    if "sweep_probability" in arrays:
        swept = means.relative(arrays["sweep_probability"], arrays["base"])
        arrays.update(means.with_bands("sweep_", swept, weights, spec.confidence))
        result.scalars.update(means.sweep_scalars(arrays["sweep_mean"]))
    result.scalars.update(means.place_scalars(arrays["place_mean"], arrays["place_prompts"]))
    return result


def _swept(model: LanguageModel, asked: Asked, spec: AttentionKnockout) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of the answer: untouched [prompt], and in every cell [prompt, window, set, layer]."""
    count, depth, sizes = len(asked), model.depth, spec.sizes(model.depth)
    base = torch.zeros(count, dtype=torch.float64)
    found = torch.zeros(count, len(sizes), len(spec.sets), depth, dtype=torch.float64)
    with progress(count * len(sizes) * len(spec.sets) * depth, "attention knockout", "cells") as bar:
        for index, some in asked.batches(spec.batch):
            clean = Clean.of(model, some.facts.batch)
            base[index] = probability(clean.logits, some.answer).cpu()
            sets = torch.stack([some.facts.positions(name) for name in spec.sets], dim=1)
            for place, size in enumerate(sizes):
                windows = [window(centre, size, depth) for centre in range(depth)]
                found[index, place] = knockout(
                    model, clean, sets, windows, some.answer, spec.nothing_left
                ).cpu()
                bar.advance(len(some) * len(spec.sets) * depth)
    return base.numpy(), found.numpy()


def _map(
    model: LanguageModel, facts: FactBatch, number: int, spec: AttentionKnockout
) -> dict[str, NamedArray]:
    """One prompt: every position cut alone, [position, layer]."""
    if number >= len(facts):
        raise UserError(f"analysis.maps: got prompt {number}. Valid: 0 to {len(facts) - 1}")
    one = facts.rows([number]).narrow()
    clean = Clean.of(model, one.batch)
    answer = clean.logits.argmax(-1).cpu()
    alone: Tensor = torch.eye(one.batch.tokens.shape[1], dtype=torch.bool)[None]
    size = spec.map_size(model.depth)
    windows = [window(centre, size, model.depth) for centre in range(model.depth)]
    found = knockout(model, clean, alone, windows, answer, spec.nothing_left)[0].cpu().numpy()
    base = float(probability(clean.logits, answer))
    axes: dict[str, Any] = {
        "position": token_texts(model, one.batch.tokens[0]), "layer": list(range(model.depth)),
    }  # fmt: skip
    return {
        f"map_{number}": NamedArray(100 * (found - base) / base, axes, "%"),
        f"map_{number}_probability": NamedArray(found, axes),
    }


def _notes(model: LanguageModel, data: Any, spec: AttentionKnockout) -> dict[str, str]:
    size = spec.sizes(model.depth)[0]
    said = f"windows of {size} of {model.depth} layers (from 0), into the last position alone"
    return {"knockout": f"{said}; where nothing is left: {spec.nothing_left}", "prompts": str(data.source)}
