"""Path patching as it is defined, in full passes: slow, plain, and what the fast path is tested against.

Source: arXiv 2211.00593, appendix B; for `downstream="filter"` the REMIX course's rule that nothing off the
path changes. For one sender, or group of senders:

    A  run the corrupt prompts and keep the sender's output;
    B  run the clean prompts and keep everything;
    C  run the clean prompts, every head's output held at its value of B but the sender's, which is that of A
       at the positions of the sweep; MLPs recomputed, or held too; record what each receiver would be;
    D  run the clean prompts with the receivers overwritten by what C recorded; all else recomputed, or
       everything but the receiving heads held at B.

For a chain of receivers the receiving heads of C become the senders of another C: their new outputs are those
with the recorded inputs overwritten and all their other inputs as in B.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from repro.data.token_pairs import PromptPairs
from repro.interventions.lm_edits import At, Edit, Replace
from repro.interventions.lm_run import Run, run
from repro.interventions.path_patching import Metric, logit_difference
from repro.interventions.path_patching_cache import to_device
from repro.interventions.path_patching_nodes import Receiver, Sender
from repro.interventions.path_patching_plan import (
    Downstream,
    Mlps,
    Plan,
    Stage,
    at_layer,
    groups_of,
    plan,
)
from repro.models.language_model import LanguageModel


@dataclass
class Held:
    """Whole outputs, z [B, T, H, D] and mlp_out [B, T, d] by layer, and the first block's input; what is
    not the clean run's has changed. mlps: layers whose MLP output is held."""

    z: dict[int, Tensor]
    mlp_out: dict[int, Tensor]
    embedding: Tensor | None = None
    mlps: set[int] = field(default_factory=set)

    def edits(self) -> list[Edit]:
        edits: list[Edit] = [Replace(At("z", layer), value) for layer, value in self.z.items()]
        edits += [Replace(At("mlp_out", layer), self.mlp_out[layer]) for layer in self.mlps]
        return edits + ([Replace(At("resid_pre", 0), self.embedding)] if self.embedding is not None else [])


class Definition:
    """Passes A and B once; `__call__` does C and D for one sender or group. `edits` are made in all passes.

    everywhere: patch senders at all positions instead of at the receivers' (it makes no difference).
    full: passes to the logits of all positions, as in the published code; else without logits (nor that).
    """

    def __init__(
        self, model: LanguageModel, pairs: PromptPairs, stages: Sequence[Sequence[Receiver]] = (), *,
        positions: str = "END", mlps: Mlps = "recompute", downstream: Downstream = "recompute",
        metric: Metric = logit_difference, edits: Sequence[Edit] = (), everywhere: bool = False,
        full: bool = True,
    ) -> None:  # fmt: skip
        self.model, self.pairs = model, to_device(pairs, model.device)
        self.plan: Plan = plan(model, self.pairs, stages, positions, mlps, downstream)
        self._metric, self._edits, self._everywhere = metric, list(edits), everywhere
        self._logits = "all" if full else None
        outputs = [At(site, layer) for site in ("z", "mlp_out") for layer in range(model.depth)]
        receiving = sorted({layer for stage in self.plan.stages for layer in stage.layers})
        inputs = [At(letter, layer) for layer in receiving for letter in "qkv"]
        self.corrupt = self._run([], [*outputs, At("resid_pre", 0)], corrupt=True)
        self.clean = self._run([], [*outputs, *inputs, At("resid_pre", 0)])

    def __call__(self, senders: Sequence[Sender]) -> Tensor:
        """The metric [B] with the paths from these senders patched."""
        held = self._sent(senders)
        values: dict[tuple[int, str], Tensor] = {}
        for i, stage in enumerate(self.plan.stages):
            values = self._recorded(held, stage)
            last = i == len(self.plan.stages) - 1
            if last and self.plan.downstream == "recompute":
                return self._measure(self._overwrite(stage, values))
            held = self._written(stage, values)
        if self.plan.stages:
            held.mlps = set(range(self.model.depth))  # filtered: nothing after the receivers is recomputed
        final = At("resid_post", self.model.depth - 1, positions=self.plan.end)
        return self._measure([Replace(final, self._run(held.edits(), [final])[final])])

    def baseline(self) -> Tensor:
        """The metric [B] of the clean prompts."""
        return self._measure([])

    def _sent(self, senders: Sequence[Sender]) -> Held:
        """What pass C holds: everything of B, but the senders' outputs of A."""
        held = self._clean_outputs()
        for one in senders:
            if one.layer < 0:
                clean, corrupt = (self._of(r, "resid_pre", 0) for r in (self.clean, self.corrupt))
                held.embedding = self._patched(clean, corrupt)
            elif one.head is None:
                corrupt = self._of(self.corrupt, "mlp_out", one.layer)
                held.mlp_out[one.layer] = self._patched(held.mlp_out[one.layer], corrupt)
                held.mlps.add(one.layer)
            else:
                z = held.z[one.layer].clone()
                corrupt = self._of(self.corrupt, "z", one.layer)[:, :, one.head]
                z[:, :, one.head] = self._patched(z[:, :, one.head], corrupt)
                held.z[one.layer] = z
        return held

    def _patched(self, clean: Tensor, corrupt: Tensor) -> Tensor:
        if self._everywhere:
            return corrupt
        columns = self.plan.stages[0].columns if self.plan.stages else self.plan.end[:, None]
        rows = torch.arange(len(clean), device=clean.device)[:, None]
        return clean.index_put((rows, columns), corrupt[rows, self.plan.source])

    def _clean_outputs(self) -> Held:
        layers = range(self.model.depth)
        z, mlp_out = (
            {layer: self._of(self.clean, site, layer) for layer in layers} for site in ("z", "mlp_out")
        )
        return Held(z, mlp_out, mlps=set(layers) if self.plan.mlps == "freeze" else set())

    def _recorded(self, held: Held, stage: Stage) -> dict[tuple[int, str], Tensor]:
        """Pass C: what each receiver would be, [B, P, R, D] by layer and letter."""
        reads = {
            (layer, letter): At(letter, layer, heads=inputs.heads, positions=stage.columns)
            for (layer, letter), inputs in stage.inputs.items()
        }
        found = self._run(held.edits(), list(reads.values()))
        return {key: found[at] for key, at in reads.items()}

    def _overwrite(self, stage: Stage, values: dict[tuple[int, str], Tensor]) -> list[Edit]:
        edits: list[Edit] = []
        for (layer, letter), inputs in stage.inputs.items():
            for r, head in enumerate(inputs.heads):
                for p in range(stage.columns.shape[1]):
                    rows = inputs.active[:, p, r].nonzero().flatten()
                    if len(rows):
                        at = At(letter, layer, [head], stage.columns[rows, p], rows)
                        edits.append(Replace(at, values[layer, letter][rows, p, r][:, None, None]))
        return edits

    def _written(self, stage: Stage, values: dict[tuple[int, str], Tensor]) -> Held:
        """What the next pass C holds: everything of B, but the outputs of the receivers with new inputs."""
        inputs = [
            Replace(At(letter, layer), self._of(self.clean, letter, layer))
            for layer in stage.layers for letter in "qkv"
        ]  # fmt: skip
        reads = [At("z", layer) for layer in stage.layers]
        found = self._run([*inputs, *self._overwrite(stage, values)], reads)
        held = self._clean_outputs()
        for at, layer in zip(reads, stage.layers, strict=True):
            heads = groups_of(self.model.layers[layer], at_layer(stage, layer))
            z = held.z[layer].clone()
            z[:, :, heads] = found[at][:, :, heads]
            held.z[layer] = z
        return held

    def _measure(self, edits: Sequence[Edit]) -> Tensor:
        """The metric of a full pass of the clean prompts with these edits."""
        if self.model.last_norm is None:
            at = At("resid_post", self.model.depth - 1, positions=self.plan.end)
            found = self._run(edits, [at])[at][:, 0]
            return self._metric(self.model, self.model.final_norm(found), self.pairs)
        at = At("final_norm", positions=self.plan.end)
        return self._metric(self.model, self._run(edits, [at])[at][:, 0], self.pairs)

    def _run(self, edits: Sequence[Edit], reads: Sequence[At], corrupt: bool = False) -> Run:
        batch = self.pairs.corrupt if corrupt else self.pairs.clean
        return run(self.model, batch, [*self._edits, *edits], reads, self._logits)

    @staticmethod
    def _of(found: Run, site: str, layer: int) -> Any:
        return found[site, layer]
