"""Does extraction need what early layers make of the subject? Positions put back to the state of an early
layer.

Source: Geva et al. 2023, arXiv 2304.14767, section on attribute extraction; definitions of the released
notebook.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repro.analyses import extraction_statistics as statistics
from repro.analyses import lm_inputs as lm
from repro.analyses.attribute_specs import EarlyPatching
from repro.analyses.fact_inputs import Asked, ask, common_arrays, common_scalars
from repro.errors import UserError
from repro.interventions.early_rows import SETS, Clean, patched_outputs
from repro.interventions.lm_run import run as forward
from repro.interventions.vocabulary_projection import Vocabulary
from repro.models.language_model import LanguageModel
from repro.progress import progress
from repro.results import NamedArray, Result
from repro.shards import WHOLE, Part, join


def run(subject: Any, data: Any, record: Any, directory: Path | None, spec: EarlyPatching) -> Result:
    """For each layer, each set of positions and each source: put those rows of the layer's input back to the
    source's hidden state, and see whether the layer's attention output at the last position names the answer.

    Arrays: event [prompt, source, set, layer]; clean_event [prompt, layer], nothing put back; rate [set,
    source], percent of examples with an event in any layer; unpatched [set, source], the same of clean_event,
    for a line beside it; change [set, source], percent of unpatched; group, and those of `fact_inputs`.
    Scalars: rate.unpatched, rate.SET.SOURCE (%); drop.SET.SOURCE, percent of the unpatched rate that is lost;
    smallest_step.SET, the smallest rise of the rate from one source to the next (points, negative: it falls);
    and the common ones.
    """
    return merge([run_part(subject, data, directory, spec, WHOLE)], spec)


def run_part(subject: Any, data: Any, directory: Path | None, spec: EarlyPatching, part: Part) -> Result:
    """The events of some of the prompts."""
    model = lm.model_of(subject)
    if max(spec.sources) >= model.depth:
        raise UserError(
            f"analysis.sources: got {max(spec.sources)}; this model has {model.depth} blocks, whose inputs"
            f" are hidden states 0 to {model.depth - 1}. Give e.g. analysis.sources=[0,{model.depth - 1}]"
        )
    asked = ask(model, data, part, spec.batch)
    groups = statistics.text_groups(data.facts)
    vocabulary = Vocabulary(model)
    event = torch.zeros(len(asked), 1 + len(spec.sources) * len(SETS), model.depth, dtype=torch.bool)
    with progress(len(asked), "early states put back", "prompts") as bar:
        for index, rows in asked.batches(spec.batch):
            event[index] = _events(model, vocabulary, rows, spec.sources)
            bar.advance(len(index))
    prompts, layers = {"prompt": len(asked)}, list(range(model.depth))
    axes = {**prompts, "source": list(spec.sources), "set": list(SETS), "layer": layers}
    arrays = {
        **common_arrays(asked),
        "group": lm.array(torch.tensor([groups[int(number)] for number in asked.facts.number]), prompts),
        "clean_event": lm.array(event[:, 0], {**prompts, "layer": layers}),
        "event": lm.array(event[:, 1:].unflatten(1, (len(spec.sources), len(SETS))), axes),
    }
    return Result({}, arrays, statistics.said(vocabulary))


def merge(parts: Sequence[Result], spec: EarlyPatching) -> Result:
    """Rates over examples, and how they change with the source."""
    result = join(parts, "prompt", add=["asked"])
    arrays, scalars = result.arrays, result.scalars
    scalars.update(common_scalars(arrays))
    group, event = arrays["group"].values, arrays["event"].values
    clean = statistics.rate(arrays["clean_event"].values, group)
    rates = np.array(
        [[statistics.rate(event[:, i, j], group) for i in range(len(spec.sources))] for j in range(len(SETS))]
    )
    axes = {"set": list(SETS), "source": list(spec.sources)}
    change = 100 * (rates - clean) / clean if clean else np.full_like(rates, np.nan)
    arrays["rate"] = NamedArray(rates, axes, "%")
    arrays["unpatched"] = NamedArray(np.full_like(rates, clean), axes, "%")
    arrays["change"] = NamedArray(change, axes, "%")
    scalars["rate.unpatched"] = clean
    for j, name in enumerate(SETS):
        for i, source in enumerate(spec.sources):
            scalars[f"rate.{name}.{source}"] = float(rates[j, i])
            scalars[f"drop.{name}.{source}"] = float(-change[j, i])
        if len(spec.sources) > 1:
            scalars[f"smallest_step.{name}"] = float(np.diff(rates[j]).min())
    return result


def _events(model: LanguageModel, vocabulary: Vocabulary, asked: Asked, sources: Sequence[int]) -> Tensor:
    """Whether each output names the answer, [B, 1 + source * set, layer]; the clean one first."""
    places = Clean.of(model, asked.facts)
    clean = forward(model, asked.facts.batch, reads=places.reads, logits=None)
    found = [
        vocabulary.ranks(patched_outputs(layer, clean, places, asked.facts, sources), asked.answer)
        for layer in model.layers
    ]
    return torch.stack(found, dim=-1).transpose(0, 1) == 0
