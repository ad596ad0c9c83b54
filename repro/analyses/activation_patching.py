"""Activation patching: one place at a time gets another run's activations; all after it is recomputed.

Every pass goes on from the patched layer of the remembered base run (`repro/interventions/lm_restart.py`),
with several places stacked as rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repro.analyses import lm_inputs as lm
from repro.analyses.lm_measure_specs import HEADS, ActivationPatching
from repro.data.token_pairs import PromptPairs
from repro.errors import UserError
from repro.interventions.lm_edits import At, Read
from repro.interventions.lm_restart import Restart, Variant, sweep
from repro.interventions.lm_run import run as forward
from repro.models.language_model import LanguageModel
from repro.progress import Progress, progress
from repro.results import Result


def run(subject: Any, data: Any, record: Any, directory: Path | None, spec: ActivationPatching) -> Result:
    """Patch every layer (and head, and position) of every site on its own.

    Arrays for each site, [layer, head, position] without the axes it has not got (`together` leaves out
    position; k and v have key/value heads): SITE.effect, mean patched minus mean base logit difference;
    SITE.percent, 100 times that over the clean mean; SITE.normalised, (patched - corrupt) / (clean -
    corrupt) of the means: 0 is as corrupt, 1 as clean; SITE.per_prompt [..., prompt], the patched logit
    difference. clean, corrupt [prompt]: logit differences of the two runs, both for the clean labels.
    Scalars: clean.mean, .sd, .se and corrupt.mean, .sd, .se. Base is the clean run in noising, else the
    corrupt one.
    """
    model = lm.model_of(subject)
    pairs = lm.pairs_of(model, data)
    places = _places(pairs, spec)
    layers = list(range(model.depth)) if spec.layers is None else spec.layers
    for layer in layers:
        model.check_head(layer, 0, "analysis.layers")
    variants = sum((heads_of(model, site) or 1) * len(places) for site in spec.sites)
    with progress(variants * len(layers) * len(pairs), "patching", "prompts") as bar:
        parts = [
            _patched(model, lm.part_of(pairs, rows), spec, layers, bar)
            for rows in lm.chunks(len(pairs), spec.batch)
        ]
    found = {name: torch.cat([part[name] for part in parts], dim=-1) for name in parts[0]}
    runs = {name: found.pop(name) for name in ("clean", "corrupt")}
    result = Result(
        {}, {name: lm.array(value, {"prompt": len(pairs)}, "logit") for name, value in runs.items()}
    )
    for name, value in runs.items():
        result.scalars.update(lm.summary(name, value))
    for site, values in found.items():
        axes: dict[str, Any] = {"layer": layers}
        if site in HEADS:
            axes["head"] = heads_of(model, site)
        if spec.positions != "together":
            axes["position"] = [name for name, _, _ in places]
        shaped = values.view(*(n if isinstance(n, int) else len(n) for n in axes.values()), -1)
        result.arrays.update(effects(site, shaped, runs, spec.direction, axes))
    result.notes["direction"] = f"{spec.direction}; base run: {base_of(spec.direction)}"
    return result


def base_of(direction: str) -> str:
    """Which prompts' run is patched."""
    return "clean" if direction == "noising" else "corrupt"


def effects(
    name: str, patched: Tensor, runs: dict[str, Tensor], direction: str, axes: dict[str, Any]
) -> dict[str, Any]:
    """The arrays of patched logit differences [..., prompt], as `run` names them."""
    mean, clean, corrupt = patched.mean(-1), runs["clean"].mean(), runs["corrupt"].mean()
    effect = mean - runs[base_of(direction)].mean()
    return {
        f"{name}.effect": lm.array(effect, axes, "logit"),
        f"{name}.percent": lm.array(100 * effect / clean, axes, "%"),
        f"{name}.normalised": lm.array((mean - corrupt) / (clean - corrupt), axes),
        f"{name}.per_prompt": lm.array(patched, {**axes, "prompt": patched.shape[-1]}, "logit"),
    }


Place = tuple[str | int, Tensor | None, Tensor | None]


def _places(pairs: PromptPairs, spec: ActivationPatching) -> list[Place]:
    """(label, clean columns, corrupt columns) of each place, columns [B, 1] or None for all."""
    if spec.positions == "together" or "pattern" in spec.sites:
        pairs.require_aligned([])
    if spec.positions == "together":
        return [("all", None, None)]
    if spec.positions == "columns":
        pairs.require_aligned([])
        if not bool(pairs.clean.mask.all()):
            raise UserError(
                "analysis.positions: columns needs prompts of one length. Name positions instead, e.g."
                f" analysis.positions=[{lm.ANSWER}], or use one template (data.templates=[1] data.order=BABA)"
            )
        rows, length = pairs.clean.tokens.shape
        here = [torch.full((rows, 1), column) for column in range(length)]
        return [(column, one, one) for column, one in enumerate(here)]
    names = lm.named_positions(pairs, spec.positions, "analysis.positions")
    return [(name, pairs.positions[name][:, None], pairs.corrupt_positions[name][:, None]) for name in names]


def _patched(
    model: LanguageModel, pairs: PromptPairs, spec: ActivationPatching, layers: Sequence[int], bar: Progress
) -> dict[str, Tensor]:
    """Logit differences [layer * variant, B] by site, and of the two runs [B]."""
    noising, places = spec.direction == "noising", _places(pairs, spec)
    base, source = (pairs.clean, pairs.corrupt) if noising else (pairs.corrupt, pairs.clean)
    ends = [pairs.positions[lm.ANSWER], pairs.corrupt_positions[lm.ANSWER]]
    columns = lm.answer_columns(pairs)
    restart = Restart(model, base)
    two = [
        lm.run_difference(model, batch, columns, end)
        for batch, end in zip((pairs.clean, pairs.corrupt), ends, strict=True)
    ]
    found = {"clean": two[0].cpu(), "corrupt": two[1].cpu()}

    def measure(resid: Tensor) -> Tensor:
        bar.advance(len(resid))
        return lm.logit_difference(model, resid, columns, ends[0 if noising else 1])

    for site in spec.sites:
        reads = [Read(At(site, layer)) for layer in layers]
        values = forward(model, source, reads=reads, logits=None)
        variants = _variants(model, site, places, noising)
        done = [sweep(restart, read.at, values[read], variants, measure, spec.batch) for read in reads]
        found[site] = torch.stack(done).cpu()
    return found


def heads_of(model: LanguageModel, site: str) -> int | None:
    """How many heads a site has; None if it has none."""
    if site not in HEADS:
        return None
    return model.kv_heads if site in ("k", "v") else model.heads


def _variants(model: LanguageModel, site: str, places: Sequence[Place], noising: bool) -> list[Variant]:
    """Heads in the outer loop, places in the inner one."""
    count = heads_of(model, site)
    at = [(clean, corrupt) if noising else (corrupt, clean) for _, clean, corrupt in places]
    return [(head, *columns) for head in ([None] if count is None else range(count)) for columns in at]
