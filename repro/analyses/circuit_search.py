"""Which circuit an analysis is about: given, published, or searched for on the model at hand.

The search follows Wang et al. 2022, arXiv 2211.00593, section 3: by path patching, first the heads that act
on the logits directly, then those that act on these heads' queries, and so on downwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from repro.analyses import lm_inputs as lm
from repro.analyses.circuit_specs import LOGITS, Classes, Search, Step
from repro.analyses.circuits import Circuit, Node, means_of, node_masks
from repro.analyses.lm_circuit_specs import WithCircuit
from repro.data.token_pairs import PromptPairs
from repro.errors import UserError
from repro.interventions.direct_effects import direct_effects
from repro.interventions.mean_ablation import Means, knock_out
from repro.interventions.path_patching import sweep
from repro.interventions.path_patching_nodes import Sender
from repro.models.language_model import LanguageModel
from repro.progress import progress

Advance = Callable[[int], None]
FOUND = "found"


@dataclass(frozen=True, eq=False)
class Measured:
    """What a step of the search saw. change: of the logit difference when each head's path is corrupted,
    [layer, head, prompt]; base: the logit difference without [prompt], after the step's knockout if any."""

    change: Tensor
    base: Tensor

    @property
    def share(self) -> Tensor:
        """Change of the mean as a share of the size of the mean, [layer, head]."""
        return self.change.mean(-1) / self.base.mean().abs()


@dataclass(frozen=True, eq=False)
class Searched:
    """A circuit, and what was measured for each step that could be taken."""

    circuit: Circuit
    steps: Mapping[str, Measured] = field(default_factory=dict)


def resolve(model: LanguageModel, data: Any, pairs: PromptPairs, spec: WithCircuit) -> Circuit:
    """The circuit that a config means, checked against model and data.

    Raises `UserError` for heads or positions that do not exist, and for a search that finds nothing.
    """
    classes, source, note = chosen(model, spec)
    if classes is not None:
        circuit = Circuit.of(classes, source, note)
        circuit.check(model, pairs)
        return circuit
    return search(model, data, pairs, spec).circuit


def chosen(model: LanguageModel, spec: WithCircuit) -> tuple[Classes | None, str, str]:
    """(classes, source, note): classes None if the circuit is to be searched for."""
    if isinstance(spec.circuit, dict):
        return spec.circuit, "given", "circuit given in the config"
    if spec.circuit == "auto" and spec.published and spec.circuit_of is not None:
        shape, wanted = (model.family, model.depth, model.heads), spec.circuit_of
        if shape == (wanted.family, wanted.depth, wanted.heads):
            return (
                spec.published,
                "published",
                f"published circuit ({shape[0]}, {shape[1]} x {shape[2]} heads)",
            )
    return None, FOUND, ""


def search(
    model: LanguageModel, data: Any, pairs: PromptPairs, spec: WithCircuit, given: Circuit | None = None
) -> Searched:  # fmt: skip
    """Take all steps; each one's class gives the receivers of later ones, or with `given` its classes do.

    A head that acts at one position belongs to the first class that took it there. A step into a class
    without heads, or at positions that the data do not have, is left out. Raises `UserError` if no head at
    all is found.
    """
    plan = spec.search
    found: dict[str, tuple[Node, ...]] = {}
    measured: dict[str, Measured] = {}
    heads, prompts = model.depth * model.heads, len(pairs)
    with progress(len(plan.steps) * heads * prompts, "searching the circuit", "paths") as bar:
        for i, step in enumerate(plan.steps):
            so_far = given or Circuit(found, FOUND, "")
            if _possible(step, so_far, pairs):
                measured[step.name] = measure(model, data, pairs, step, so_far, spec, bar.advance)
                if given is None:
                    found[step.name] = _taken(step, plan, measured[step.name], so_far)
            bar.set((i + 1) * heads * prompts)
    if given is not None:
        return Searched(given, measured)
    if not any(found.values()):
        raise UserError(
            f"circuit: no head changes the logit difference by {plan.threshold:g} of its mean. Lower"
            " analysis.search.threshold, or give analysis.circuit"
        )
    found = {name: nodes for name, nodes in found.items() if nodes}
    return Searched(Circuit(found, FOUND, _note(plan)), measured)


def measure(
    model: LanguageModel, data: Any, pairs: PromptPairs, step: Step, circuit: Circuit, spec: WithCircuit,
    advance: Advance | None = None,
) -> Measured:  # fmt: skip
    """The effects of all heads in one step, on the classes of `circuit`."""
    if step.after:
        means, _ = means_of(model, data, pairs, spec)
        return _after_knockout(model, pairs, circuit.choose(step.after, "after"), means, spec)
    stages = []
    if step.into != LOGITS:
        name, _, letter = step.into.rpartition(".")
        stages = [circuit.receivers(model, name, letter, step.at)]
    senders = [Sender(layer, head) for layer in range(model.depth) for head in range(model.heads)]
    effects = sweep(
        model, pairs, senders, stages, positions=step.at, mlps=spec.search.mlps, advance=advance
    )  # fmt: skip
    change = effects.change.double().cpu().view(model.depth, model.heads, -1)
    return Measured(change, effects.baseline.double().cpu())


def _after_knockout(
    model: LanguageModel, pairs: PromptPairs, nodes: tuple[Node, ...], means: Means, spec: WithCircuit
) -> Measured:
    """Direct effects on the logits of a model that has lost some heads already."""
    changes, bases = [], []
    for rows in lm.chunks(len(pairs), spec.batch):
        part = lm.part_of(pairs, rows)
        twins = []
        for batch, positions in ((part.clean, part.positions), (part.corrupt, part.corrupt_positions)):
            masks = node_masks(model, batch, positions, nodes)
            twins.append((batch, positions[lm.ANSWER], knock_out(means, batch, part.groups, masks)))

        def difference(resid: Tensor, part: PromptPairs = part) -> Tensor:
            return lm.logit_difference(model, resid, lm.answer_columns(part), part.positions[lm.ANSWER])

        masks = node_masks(model, part.clean, part.positions, nodes)
        base, patched = direct_effects(model, twins[0], twins[1], difference, spec.search.mlps, masks)
        changes.append((patched - base).cpu())
        bases.append(base.cpu())
    return Measured(torch.cat(changes, dim=-1), torch.cat(bases))


def _possible(step: Step, circuit: Circuit, pairs: PromptPairs) -> bool:
    named = [step.into.rpartition(".")[0]] if step.into != LOGITS else []
    known = all(circuit.classes.get(name) for name in [*named, *step.after])
    return known and step.at in pairs.positions and step.at in pairs.corrupt_positions


def _taken(step: Step, plan: Search, measured: Measured, circuit: Circuit) -> tuple[Node, ...]:
    """The heads of a step's class, the strongest first."""
    strength = step.sign * measured.share
    least = plan.threshold if step.threshold is None else step.threshold
    order = strength.flatten().argsort(descending=True, stable=True).tolist()
    heads = strength.shape[1]
    possible = [i for i in order if strength.flatten()[i] >= 1e-12]
    nodes = [(Node(i // heads, i % heads, step.at), bool(strength.flatten()[i] >= least)) for i in possible]
    free = [(node, strong) for node, strong in nodes if node not in circuit.nodes]
    taken = [node for place, (node, strong) in enumerate(free) if strong or place < plan.at_least]
    return tuple(taken[: step.at_most or plan.at_most])


def _note(plan: Search) -> str:
    return (
        "circuit found on this model by path patching, not the published one: heads that change the logit"
        f" difference by at least {100 * plan.threshold:g}% of its mean, at most {plan.at_most} a class"
    )
