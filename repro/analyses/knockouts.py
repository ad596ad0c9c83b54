"""Knockouts: what happens to the logit difference when heads and MLPs are replaced by their mean.

Source: Wang et al. 2022, arXiv 2211.00593, section on knockouts, and the backup name movers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repro.analyses import lm_inputs as lm
from repro.analyses.head_specs import split_node
from repro.analyses.lm_measure_specs import UNTOUCHED, Knockouts
from repro.data.token_batch import TokenBatch
from repro.data.token_pairs import PromptPairs
from repro.errors import UserError
from repro.interventions.direct_effects import Twin, direct_effects
from repro.interventions.lm_edits import At
from repro.interventions.lm_restart import Restart, sweep
from repro.interventions.mean_ablation import (
    Masks,
    Means,
    head_masks,
    knock_out,
    outside,
    reference_means,
    zero_means,
)
from repro.models.language_model import LanguageModel
from repro.progress import Progress, progress
from repro.results import Result


def run(subject: Any, data: Any, record: Any, directory: Path | None, spec: Knockouts) -> Result:
    """Logit differences of the clean prompts at END under every knockout.

    Arrays (logits): logit_difference [prompt], untouched. With `singles`: head.effect [layer, head] and
    mlp.effect [layer], the change of the mean; head.percent, mlp.percent of the untouched mean;
    head.per_prompt [layer, head, prompt], mlp.per_prompt [layer, prompt]: logit differences. With `sets`:
    set.per_prompt [set, prompt], set.mean, set.change, set.percent [set]. With `direct_after`: direct.effect
    and direct.percent [set, layer, head], the change of the mean when a head's direct path to the logits
    is patched from the corrupt prompts, with nothing ("untouched") or a set knocked out, percent of the
    mean with that set knocked out; direct.per_prompt [set, layer, head, prompt], changes. Scalars:
    logit_difference.mean, .sd, .se, and for each set NAME.mean, NAME.sd, NAME.se, NAME.ratio (to untouched).
    """
    model = lm.model_of(subject)
    pairs = lm.pairs_of(model, data)
    _check(model, pairs, spec)
    means, reference = _means(model, data, pairs, spec)
    for batch in [pairs.clean, pairs.corrupt] if spec.direct_after else [pairs.clean]:
        means.check(batch, pairs.groups)
    heads, states = model.depth * model.heads, bool(spec.direct_after) * (1 + len(spec.direct_after))
    work = 1 + spec.singles * (heads + model.depth) + len(spec.sets) + states * (1 + heads)
    with progress(work * len(pairs), "knocking out", "prompts") as bar:
        parts = [
            _Part(model, lm.part_of(pairs, rows), spec, means, bar).measure()
            for rows in lm.chunks(len(pairs), spec.batch)
        ]
    found = {name: torch.cat([part[name] for part in parts], dim=-1).cpu() for name in parts[0]}
    base = found["logit_difference"]
    arrays = {"logit_difference": lm.array(base, {"prompt": len(base)}, "logit")}
    result = Result(lm.summary("logit_difference", base), arrays, {"reference": reference})
    if spec.singles:
        _add_singles(result, found, {"layer": model.depth}, {"head": model.heads})
    if spec.sets:
        _add_sets(result, found["sets"], base, list(spec.sets))
    if spec.direct_after:
        _add_direct(result, found["direct"], found["direct_base"], spec)
    return result


def _check(model: LanguageModel, pairs: PromptPairs, spec: Knockouts) -> None:
    if spec.positions != "all":
        lm.named_positions(pairs, spec.positions, "analysis.positions")
    for name, chosen in spec.sets.items():
        where = f"analysis.sets.{name}"
        for node in chosen.nodes:
            layer, head, position = split_node(node)
            model.check_head(layer, head if isinstance(head, int) else 0, where)
            lm.named_positions(pairs, [position] if position else [], where)
        if chosen.outside and any(split_node(node)[1] is None for node in chosen.nodes):
            raise UserError(f"{where}: with outside=true MLPs stay as they are anyway. List heads only")
    unknown = [name for name in spec.direct_after if name not in spec.sets]
    if unknown:
        raise UserError(f"analysis.direct_after: got {', '.join(unknown)}. Valid: {', '.join(spec.sets)}")


def _means(model: LanguageModel, data: Any, pairs: PromptPairs, spec: Knockouts) -> tuple[Means, str]:
    if spec.value == "zero":
        return zero_means(model, pairs.groups, pairs.clean.tokens.shape[1]), "zero"
    if spec.per_template is None or not hasattr(data, "reference"):
        means = reference_means(model, pairs.corrupt, pairs.groups, rows=spec.batch)
        return means, f"mean by group and position over the {len(pairs)} corrupt prompts"
    drawn = data.tokenise(data.reference(spec.per_template, spec.reference_seed), model.tokenizer)
    means = reference_means(model, drawn.batch, drawn.groups, rows=spec.batch)
    return means, f"mean by template and position over {spec.per_template} ABC prompts of each template"


class _Part:
    """Some of the prompts, with one remembered run of them."""

    def __init__(
        self, model: LanguageModel, pairs: PromptPairs, spec: Knockouts, means: Means, bar: Progress
    ) -> None:
        self.model, self.pairs, self.spec, self.means, self.bar = model, pairs, spec, means, bar
        self.restart = Restart(model, pairs.clean)

    def measure(self) -> dict[str, Tensor]:
        """Logit differences [..., B] of everything asked for."""
        found = {"logit_difference": self._difference(self.restart.go(self.model.depth - 1))}
        if self.spec.singles:
            found |= {"head": self._singles("z"), "mlp": self._singles("mlp_out")[:, 0]}
        if self.spec.sets:
            found["sets"] = torch.stack([self._set(name) for name in self.spec.sets])
        if self.spec.direct_after:
            states = [self._direct(name) for name in (UNTOUCHED, *self.spec.direct_after)]
            found["direct_base"] = torch.stack([base for base, _ in states])
            found["direct"] = torch.stack([patched - base for base, patched in states])
        return found

    def _difference(self, resid: Tensor) -> Tensor:
        self.bar.advance(len(resid))
        return lm.logit_difference(
            self.model, resid, lm.answer_columns(self.pairs), self.pairs.positions[lm.ANSWER]
        )

    def _singles(self, site: str) -> Tensor:
        """[layer, variant, B]: every head, or the MLP, replaced on its own."""
        positions = self.spec.positions
        columns = None
        if positions != "all":
            columns = torch.stack([self.pairs.positions[name] for name in positions], dim=1)
        heads = range(self.model.heads) if site == "z" else [None]
        done = []
        for layer in range(self.model.depth):
            source = self.means.at(site, layer, self.pairs.clean, self.pairs.groups)
            variants = [(head, columns, columns) for head in heads]
            at = At(site, layer)
            done.append(sweep(self.restart, at, source, variants, self._difference, self.spec.batch))
        return torch.stack([each.to(done[0].device) for each in done])

    def _masks(self, name: str, batch: TokenBatch, positions: Mapping[str, Tensor]) -> Masks:
        if name == UNTOUCHED:
            return {}
        chosen, nodes = self.spec.sets[name], []
        for layer, head, position in map(split_node, chosen.nodes):
            nodes.append((layer, head, positions[position][:, None] if position else None))
        masks = head_masks(self.model, batch, nodes)
        return outside(self.model, batch, masks) if chosen.outside else masks

    def _set(self, name: str) -> Tensor:
        masks = self._masks(name, self.pairs.clean, self.pairs.positions)
        edits = knock_out(self.means, self.pairs.clean, self.pairs.groups, masks)
        lowest = min((edit.at.layer or 0 for edit in edits), default=self.model.depth - 1)
        return self._difference(self.restart.go(lowest, edits))

    def _direct(self, name: str) -> tuple[Tensor, Tensor]:
        clean, corrupt = (self._twin(name, which) for which in ("clean", "corrupt"))
        masks = self._masks(name, self.pairs.clean, self.pairs.positions)
        return direct_effects(self.model, clean, corrupt, self._difference, self.spec.mlps, masks)

    def _twin(self, name: str, which: str) -> Twin:
        batch, positions = lm.side(self.pairs, which)
        masks = self._masks(name, batch, positions)
        return batch, positions[lm.ANSWER], knock_out(self.means, batch, self.pairs.groups, masks)


def _add_singles(result: Result, found: Mapping[str, Tensor], layer: dict, head: dict) -> None:
    base = found["logit_difference"]
    for name, axes in (("head", {**layer, **head}), ("mlp", layer)):
        effect = found[name].mean(-1) - base.mean()
        result.arrays[f"{name}.effect"] = lm.array(effect, axes, "logit")
        result.arrays[f"{name}.percent"] = lm.array(100 * effect / base.mean(), axes, "%")
        result.arrays[f"{name}.per_prompt"] = lm.array(found[name], {**axes, "prompt": len(base)}, "logit")


def _add_sets(result: Result, values: Tensor, base: Tensor, names: list[str]) -> None:
    means, axes = values.mean(-1), {"set": names}
    result.arrays["set.per_prompt"] = lm.array(values, {**axes, "prompt": len(base)}, "logit")
    result.arrays["set.mean"] = lm.array(means, axes, "logit")
    result.arrays["set.change"] = lm.array(means - base.mean(), axes, "logit")
    result.arrays["set.percent"] = lm.array(100 * (means - base.mean()) / base.mean(), axes, "%")
    for name, row in zip(names, values, strict=True):
        result.scalars.update(lm.summary(name, row))
        result.scalars[f"{name}.ratio"] = float(row.mean() / base.mean())


def _add_direct(result: Result, values: Tensor, base: Tensor, spec: Knockouts) -> None:
    axes = {"set": [UNTOUCHED, *spec.direct_after], "layer": values.shape[1], "head": values.shape[2]}
    effect = values.mean(-1)
    result.arrays["direct.effect"] = lm.array(effect, axes, "logit")
    result.arrays["direct.percent"] = lm.array(100 * effect / base.mean(-1)[:, None, None], axes, "%")
    result.arrays["direct.per_prompt"] = lm.array(values, {**axes, "prompt": values.shape[-1]}, "logit")
