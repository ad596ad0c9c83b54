"""Which sublayers enrich the subject: its attributes rate when MLPs or attention of layers are cancelled.

Source: Geva et al. 2023, arXiv 2304.14767, section on subject enrichment; definitions of the released
notebook.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repro.analyses import lm_inputs as lm
from repro.analyses.attribute_rating import Rater, require_paragraphs
from repro.analyses.attribute_specs import SublayerKnockout
from repro.analyses.fact_inputs import Asked, ask, common_arrays, common_scalars, facts_of
from repro.data.token_batch import TokenBatch
from repro.errors import UserError
from repro.interventions.lm_restart import Restart
from repro.interventions.sublayers import SUBLAYERS, cancelled
from repro.models.language_model import LanguageModel
from repro.progress import progress
from repro.results import NamedArray, Result
from repro.shards import WHOLE, Part, join


def run(subject: Any, data: Any, record: Any, directory: Path | None, spec: SublayerKnockout) -> Result:
    """The rate at the last subject position after block `spec.layer`, for every first blocked layer below it.

    Arrays: plain_rate [prompt], nothing cancelled; rate [prompt, sublayer, start], %, -1 where the subject
    has no paragraphs; mean_rate [sublayer, start], over the others, with `none` as a first, constant row; the
    same of every way of knocking out, the result's first: knockout_rate [prompt, knockout, start, sublayer]
    and knockout_mean [knockout, sublayer, start]; blocked [start], how many layers are; context_size
    [prompt]; those of `fact_inputs`. Scalars: rate.none; lowest.SUBLAYER, the lowest mean rate over early
    starts, and ratio.SUBLAYER, that over rate.none; both behind another way's name; with_paragraphs
    (prompts); and the common ones.
    """
    return merge([run_part(subject, data, directory, spec, WHOLE)], spec)


def run_part(subject: Any, data: Any, directory: Path | None, spec: SublayerKnockout, part: Part) -> Result:
    """The rates of some of the prompts."""
    model = lm.model_of(subject)
    if not 0 < spec.layer < model.depth:
        raise UserError(
            f"analysis.layer: got {spec.layer}; blocks below it are cancelled, and this model has layers 0 to"
            f" {model.depth - 1}. Give e.g. analysis.layer={max(1, round(model.depth * 40 / 48) - 1)}"
        )
    facts_of(model, data)  # refused before paragraphs are looked for
    rater = Rater(model, data, spec)
    asked = ask(model, data, part, spec.batch)
    shape = (spec.layer, len(spec.ways), len(SUBLAYERS))
    rate = torch.zeros(len(asked), 1 + math.prod(shape), dtype=torch.float64)
    with progress(len(asked) * spec.layer, "sublayer knockout", "starts") as bar:
        for index, rows in asked.batches(spec.batch):
            rate[index] = rater.rate(_states(model, rows, spec, bar), rows.facts)
    prompts: dict[str, Any] = {"prompt": len(asked)}
    starts: list[Any] = list(range(spec.layer))
    axes = {"start": starts, "sublayer": list(SUBLAYERS)}
    rates = rate[:, 1:].unflatten(1, shape).transpose(1, 2)  # prompt, way, start, sublayer
    arrays = {
        **common_arrays(asked),
        "plain_rate": lm.array(rate[:, 0], prompts, "%"),
        "rate": lm.array(rates[:, 0], {**prompts, **axes}, "%"),
        "knockout_rate": lm.array(rates, {**prompts, "knockout": list(spec.ways), **axes}, "%"),
        "context_size": lm.array(rater.sizes(asked.facts), prompts),
    }
    others = f"; also measured: {', '.join(spec.ways[1:]) or 'nothing'}"
    return Result({}, arrays, {**rater.says, "knockout": spec.knockout + others})


def merge(parts: Sequence[Result], spec: SublayerKnockout) -> Result:
    """Means over prompts whose subject has paragraphs."""
    result = join(parts, "prompt", add=["asked"])
    arrays, scalars = result.arrays, result.scalars
    scalars.update(common_scalars(arrays))
    sizes = arrays["context_size"].values
    require_paragraphs(sizes)
    known = sizes >= 0
    plain = float(arrays["plain_rate"].values[known].mean())
    mean = arrays["knockout_rate"].values[known].mean(0)  # way, start, sublayer
    starts: list[Any] = list(range(spec.layer))
    rows = np.stack([np.vstack([np.full(len(starts), plain), one.T]) for one in mean])
    axes: dict[str, Any] = {"sublayer": ["none", *SUBLAYERS], "start": starts}
    arrays["mean_rate"] = NamedArray(rows[0], axes, "%")
    arrays["knockout_mean"] = NamedArray(rows, {"knockout": list(spec.ways), **axes}, "%")
    arrays["blocked"] = NamedArray(np.array([len(spec.window(start)) for start in starts]), {"start": starts})
    scalars.update({"rate.none": plain, "with_paragraphs": float(known.sum())})
    for way, one in zip(spec.ways, mean, strict=True):
        before = "" if way == spec.knockout else f"{way}."
        for name, lowest in zip(SUBLAYERS, one[: spec.early + 1].min(0).tolist(), strict=True):
            scalars[f"{before}lowest.{name}"] = lowest
            scalars[f"{before}ratio.{name}"] = lowest / plain if plain else float("nan")
    return result


def _states(model: LanguageModel, asked: Asked, spec: SublayerKnockout, bar: Any) -> Tensor:
    """States at the last subject position [B, n, d]: one plain, then for each start one a way and sublayer.

    What comes after the last subject position does not act on it, so it is cut off; blocks below a start are
    not run again.
    """
    facts, count = asked.facts, len(asked)
    width = int(facts.last.max()) + 1
    mask = torch.arange(width)[None] <= facts.last[:, None]
    batch = TokenBatch(facts.batch.tokens[:, :width], mask)
    restart = Restart(model, batch)
    rows = torch.arange(count)

    def read(resid: Tensor) -> Tensor:
        """[copies * B, T, d] at the last subject position, [B, copies, d]; the last state is normalised."""
        copies = len(resid) // count
        found = resid.unflatten(0, (copies, count))[:, rows, facts.last].transpose(0, 1)
        if spec.layer == model.depth - 1 and model.last_norm is not None:
            with torch.no_grad():
                found = model.last_norm(found)  # type: ignore[operator]
        return found

    states, kinds = [read(restart.go(0, end=spec.layer + 1))], list(product(spec.ways, SUBLAYERS))
    for start in range(spec.layer):
        edits = [
            edit
            for copy, (way, sublayer) in enumerate(kinds)
            for edit in cancelled(
                sublayer, way, spec.window(start), facts.last, range(copy * count, (copy + 1) * count)
            )
        ]
        states.append(read(restart.go(start, edits, copies=len(kinds), end=spec.layer + 1)))
        bar.advance(count)
    return torch.cat(states, dim=1)
