"""How rich in attributes of the subject hidden states are, by position and layer.

Source: Geva et al. 2023, arXiv 2304.14767, section on subject enrichment; definitions of the released
notebook.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repro.analyses import lm_inputs as lm
from repro.analyses.attribute_rating import Rater, require_paragraphs
from repro.analyses.attribute_specs import AttributesRate
from repro.analyses.fact_inputs import Asked, ask, common_arrays, common_scalars, facts_of
from repro.data.facts_tokens import FactBatch
from repro.interventions.lm_edits import At
from repro.interventions.lm_run import run as forward
from repro.models.language_model import LanguageModel
from repro.progress import progress
from repro.results import NamedArray, Result
from repro.shards import WHOLE, Part, join

SUBJECT, SHOWN = "subject-last", 10


def run(subject: Any, data: Any, record: Any, directory: Path | None, spec: AttributesRate) -> Result:
    """Rates of the hidden states 0 (the embedding) to depth - 1 at named positions.

    Arrays: rate [prompt, position, layer], %, -1 where the subject has no paragraphs; mean_rate [position,
    layer], over the others; static_rate [prompt], of the mean embedding of the subject's tokens; static
    [layer], its mean, for a line beside; context_size [prompt], strings in the paragraphs, -1 without any;
    top_words [prompt, layer, rank], of the first prompts at the last subject position; those of
    `fact_inputs`. Layers are numbers of hidden states: the paper's axis is one more. Scalars: best.POSITION
    (%) and best_layer.POSITION, the highest mean rate and where; gap, at the best layer of subject-last: its
    rate minus the highest of the others but `first` (points); static.mean; context_size.mean; with_paragraphs
    (prompts).
    """
    return merge([run_part(subject, data, directory, spec, WHOLE)], spec)


def run_part(subject: Any, data: Any, directory: Path | None, spec: AttributesRate, part: Part) -> Result:
    """The rates of some of the prompts."""
    model = lm.model_of(subject)
    facts_of(model, data)  # refused before paragraphs are looked for
    rater = Rater(model, data, spec)
    asked = ask(model, data, part, spec.batch)
    rate = torch.zeros(len(asked), len(spec.positions), model.depth, dtype=torch.float64)
    static = torch.zeros(len(asked), dtype=torch.float64)
    words = np.full((len(asked), model.depth, SHOWN), "", dtype=object)
    with progress(len(asked), "attributes rate", "prompts") as bar:
        for index, rows in asked.batches(spec.batch):
            states = _states(model, rows, spec)
            rate[index] = rater.rate(states, rows.facts)
            static[index] = rater.static(rows.facts) if spec.static else float("nan")
            _show(words, index, rows, states, rater, spec)
            bar.advance(len(index))
    prompts: dict[str, Any] = {"prompt": len(asked)}
    layers: list[Any] = list(range(model.depth))
    arrays = {
        **common_arrays(asked),
        "rate": lm.array(rate, {**prompts, "position": list(spec.positions), "layer": layers}, "%"),
        "context_size": lm.array(rater.sizes(asked.facts), prompts),
        "top_words": NamedArray(words.astype(np.str_), {**prompts, "layer": layers, "rank": SHOWN}),
    }
    if spec.static:
        arrays["static_rate"] = lm.array(static, prompts, "%")
    return Result({}, arrays, rater.says)


def merge(parts: Sequence[Result], spec: AttributesRate) -> Result:
    """Means over prompts whose subject has paragraphs."""
    result = join(parts, "prompt", add=["asked"])
    arrays, scalars = result.arrays, result.scalars
    scalars.update(common_scalars(arrays))
    sizes = arrays["context_size"].values
    require_paragraphs(sizes)
    known, rate = sizes >= 0, arrays["rate"]
    mean = rate.values[known].mean(0)
    axes = {name: rate.axes[name] for name in ("position", "layer")}
    arrays["mean_rate"] = NamedArray(mean, axes, "%")
    scalars["with_paragraphs"] = float(known.sum())
    scalars["context_size.mean"] = float(sizes[known].mean())
    best = mean.argmax(1)
    for place, position in enumerate(spec.positions):
        scalars[f"best.{position}"] = float(mean[place].max())
        scalars[f"best_layer.{position}"] = float(best[place])
    if SUBJECT in spec.positions:
        own = list(spec.positions).index(SUBJECT)
        others = [i for i, name in enumerate(spec.positions) if name not in (SUBJECT, "first")]
        if others:
            scalars["gap"] = float(mean[own, best[own]] - mean[others, best[own]].max())
        _examples(result, int(best[own]), spec.examples)
    if spec.static:
        scalars["static.mean"] = float(arrays["static_rate"].values[known].mean())
        arrays["static"] = NamedArray(
            np.full(mean.shape[1], scalars["static.mean"]), {"layer": axes["layer"]}, "%"
        )
    return result


def columns(facts: FactBatch, names: Sequence[str]) -> Tensor:
    """Columns [B, P] of named positions."""
    known = {
        "subject-last": facts.last,
        "subject-first": facts.first,
        "following": facts.last + 1,
        "last": facts.end,
        "first": torch.zeros_like(facts.end),
    }
    return torch.stack([known[name] for name in names], dim=1)


def _states(model: LanguageModel, asked: Asked, spec: AttributesRate) -> Tensor:
    """Hidden states [B, position, layer, d]."""
    where = columns(asked.facts, spec.positions)
    places = [At("resid_pre", layer, positions=where) for layer in range(model.depth)]
    found = forward(model, asked.facts.batch, reads=places, logits=None)
    return torch.stack([found[place] for place in places], dim=2)


def _show(
    words: np.ndarray, index: Tensor, asked: Asked, states: Tensor, rater: Rater, spec: AttributesRate
) -> None:
    """Write down the top words of prompts that are examples."""
    if SUBJECT not in spec.positions:
        return
    own = list(spec.positions).index(SUBJECT)
    for row, number in enumerate(asked.facts.number.tolist()):
        if number < spec.examples:
            for layer, found in enumerate(rater.top_words(states[row, own], SHOWN)):
                words[int(index[row]), layer, : len(found)] = found


def _examples(result: Result, layer: int, count: int) -> None:
    words, numbers = result.arrays["top_words"].values, result.arrays["number"].values
    for place in np.nonzero(numbers < count)[0].tolist():
        shown = [str(word).strip() for word in words[place, layer] if word]
        result.notes[f"prompt.{numbers[place]}"] = f"layer {layer}: {', '.join(shown)}"
