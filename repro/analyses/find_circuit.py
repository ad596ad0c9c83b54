"""The circuit of the model at hand: searched for, verified by knockouts, and ready to be drawn as a graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repro.analyses import lm_inputs as lm
from repro.analyses.circuit_search import FOUND, Searched, chosen, search
from repro.analyses.circuit_specs import LOGITS, Step
from repro.analyses.circuits import Circuit, Node, means_of, node_masks, per_prompt
from repro.analyses.lm_circuit_specs import FindCircuit
from repro.data.token_pairs import PromptPairs
from repro.interventions.knockout_sets import KnockoutSets
from repro.interventions.lm_edits import At, Read
from repro.interventions.lm_run import run as forward
from repro.interventions.mean_ablation import Means
from repro.models.language_model import LanguageModel
from repro.results import NamedArray, Result


def run(subject: Any, data: Any, record: Any, directory: Path | None, spec: FindCircuit) -> Result:
    """Effects of the search, the circuit's nodes and edges, and knockouts of nodes and classes.

    Effects are changes of the logit difference when a path is corrupted. Arrays: step.change (logits) and
    step.percent (of the clean mean, or of that after the step's knockout) [step, layer, head], means;
    step.per_prompt [step, layer, head, prompt]; node.class, node.position (text), node.layer, node.head,
    node.percent [node]; node.attention [node, key] from the node's position, clean prompts; edge.percent
    [node, receiver], NaN where no step measures it; node.knockout and class.knockout, changes of the mean
    (logits); class.knockout_percent; class.per_prompt [class, prompt], logit differences; class.predicted,
    the sign of the effect, class.verified [class] and node.verified [node] (each head knocked out alone), NaN
    for classes without a step. Scalars: logit_difference.mean, .sd, .se; heads, classes; verified.share of
    the classes that can be, verified.heads (nodes that are, alone); CLASS.heads,
    CLASS.percent (knockout), CLASS.verified; for a circuit that was not found here, agreement.CLASS: share
    of its heads among as many strongest ones of its step.
    """
    model = lm.model_of(subject)
    pairs = lm.pairs_of(model, data)
    classes, source, note = chosen(model, spec)
    given = None if classes is None else Circuit.of(classes, source, note)
    if given is not None:
        given.check(model, pairs)
    found = search(model, data, pairs, spec, given)
    circuit, steps = found.circuit, [step for step in spec.search.steps if step.name in found.steps]
    means, reference = means_of(model, data, pairs, spec)
    base, alone, together = _knockouts(model, pairs, circuit, means, spec.batch)
    result = Result(lm.summary("logit_difference", base), {}, {"reference": reference})
    result.notes["circuit"] = f"{circuit.note}. " + "; ".join(
        f"{name}: {', '.join(map(str, nodes))}" for name, nodes in circuit.classes.items()
    )
    _add_steps(result, found, steps)
    _add_nodes(result, found, steps, alone - base.mean())
    _add_classes(result, found, steps, base, together, spec)
    _add_verified_nodes(result, found, base, alone, spec)
    keys = lm.named_positions(pairs, spec.attention_keys, "analysis.attention_keys")
    if keys:
        attention = _attention(model, pairs, circuit.nodes, keys, spec.batch)
        axes = {"node": [str(node) for node in circuit.nodes], "key": keys}
        result.arrays["node.attention"] = lm.array(attention, axes)
    return result


def _knockouts(
    model: LanguageModel, pairs: PromptPairs, circuit: Circuit, means: Means, batch: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Logit differences: [B] untouched, mean without each node [node], without each class [class, B]."""
    chosen_sets = [[node] for node in circuit.nodes] + [list(nodes) for nodes in circuit.classes.values()]
    found = []
    for rows in lm.chunks(len(pairs), batch):
        part = lm.part_of(pairs, rows)
        end = part.positions[lm.ANSWER]
        subject = KnockoutSets(model, part.clean, part.groups, end, means)
        sets = [node_masks(model, part.clean, part.positions, nodes) for nodes in [[], *chosen_sets]]
        resid = subject.resid(sets).flatten(0, 1)
        values = lm.logit_difference(model, resid, lm.answer_columns(part), end)
        found.append(values.view(len(sets), -1))
    values = per_prompt(found)
    count = 1 + len(circuit.nodes)
    return values[0], values[1:count].mean(-1), values[count:]


def _attention(
    model: LanguageModel, pairs: PromptPairs, nodes: tuple[Node, ...], keys: list[str], batch: int
) -> Tensor:
    """Mean attention [node, key] from each node's position (END for nodes at all positions)."""
    total = torch.zeros(len(nodes), len(keys), dtype=torch.float64)
    for rows in lm.chunks(len(pairs), batch):
        part = lm.part_of(pairs, rows)
        columns = torch.stack([part.positions[key] for key in keys], dim=1)
        reads = [
            Read(At("pattern", node.layer, [node.head], part.positions[node.at or lm.ANSWER]))
            for node in nodes
        ]
        found = forward(model, part.clean, reads=reads, logits=None)
        for i, read in enumerate(reads):
            total[i] += found[read][:, 0, 0].double().cpu().gather(1, columns).sum(0)
    return total / len(pairs)


def _add_steps(result: Result, found: Searched, steps: list[Step]) -> None:
    change = torch.stack([found.steps[step.name].change for step in steps])
    share = torch.stack([found.steps[step.name].share for step in steps])
    axes = {"step": [step.name for step in steps], "layer": change.shape[1], "head": change.shape[2]}
    result.arrays["step.change"] = lm.array(change.mean(-1), axes, "logit")
    result.arrays["step.percent"] = lm.array(100 * share, axes, "%")
    result.arrays["step.per_prompt"] = lm.array(change.float(), {**axes, "prompt": change.shape[3]}, "logit")


def _add_nodes(result: Result, found: Searched, steps: list[Step], knockout: Tensor) -> None:
    circuit = found.circuit
    nodes = circuit.nodes
    axes: dict[str, Any] = {"node": [str(node) for node in nodes]}
    receivers = [*circuit.classes, LOGITS]
    edges = np.full((len(nodes), len(receivers)), np.nan)
    own = np.full(len(nodes), np.nan)
    for step in steps:
        share = found.steps[step.name].share
        into = LOGITS if step.into == LOGITS else step.into.rpartition(".")[0]
        for i, node in enumerate(nodes):
            if node not in circuit.classes.get(step.name, ()):
                continue
            edges[i, receivers.index(into)] = own[i] = 100 * float(share[node.layer, node.head])
    texts = {"class": [circuit.class_of(n) for n in nodes], "position": [n.at or "all" for n in nodes]}
    for name, values in texts.items():
        result.arrays[f"node.{name}"] = NamedArray(np.array(values), dict(axes))
    for name in ("layer", "head"):
        result.arrays[f"node.{name}"] = NamedArray(np.array([getattr(n, name) for n in nodes]), dict(axes))
    result.arrays["node.percent"] = NamedArray(own, dict(axes), "%")
    both: dict[str, Any] = {**axes, "receiver": receivers}
    result.arrays["edge.percent"] = NamedArray(edges, both, "%")
    result.arrays["node.knockout"] = lm.array(knockout, axes, "logit")
    result.scalars["heads"] = len({(node.layer, node.head) for node in nodes})


def _add_classes(
    result: Result, found: Searched, steps: list[Step], base: Tensor, values: Tensor, spec: FindCircuit
) -> None:
    circuit, axes = found.circuit, {"class": list(found.circuit.classes)}
    signs = {step.name: step.sign for step in steps}
    change = values.mean(-1) - base.mean()
    share = change / base.mean().abs()
    predicted = torch.tensor([float(signs.get(name, np.nan)) for name in circuit.classes])
    verified = (predicted * share >= spec.search.verified_share).double()
    verified = torch.where(predicted.isnan(), predicted.double(), verified)
    result.arrays["class.knockout"] = lm.array(change, axes, "logit")
    result.arrays["class.knockout_percent"] = lm.array(100 * share, axes, "%")
    result.arrays["class.per_prompt"] = lm.array(values, {**axes, "prompt": values.shape[1]}, "logit")
    result.arrays["class.predicted"] = lm.array(predicted, axes)
    result.arrays["class.verified"] = lm.array(verified, axes)
    result.scalars["classes"] = len(circuit.classes)
    result.scalars["verified.share"] = float(verified.nanmean())
    for i, (name, nodes) in enumerate(circuit.classes.items()):
        result.scalars[f"{name}.heads"] = len(nodes)
        result.scalars[f"{name}.percent"] = float(100 * share[i])
        result.scalars[f"{name}.verified"] = float(verified[i])
        if circuit.source != FOUND and name in signs:
            strength = (signs[name] * found.steps[name].share).flatten()
            top = set(strength.topk(len(nodes)).indices.tolist())
            width = found.steps[name].share.shape[1]
            hits = sum(node.layer * width + node.head in top for node in nodes)
            result.scalars[f"agreement.{name}"] = hits / len(nodes)


def _add_verified_nodes(
    result: Result, found: Searched, base: Tensor, alone: Tensor, spec: FindCircuit
) -> None:  # fmt: skip
    """Heads that carry their effect on their own: alone: mean logit differences without each node."""
    signs = {step.name: float(step.sign) for step in spec.search.steps if step.name in found.steps}
    nodes = found.circuit.nodes
    predicted = torch.tensor([signs.get(found.circuit.class_of(node), float("nan")) for node in nodes])
    share = (alone - base.mean()) / base.mean().abs()
    verified = (predicted * share >= spec.search.verified_share).double()
    verified = torch.where(predicted.isnan(), predicted.double(), verified)
    result.arrays["node.verified"] = lm.array(verified, {"node": [str(node) for node in nodes]})
    result.scalars["verified.heads"] = float(verified.nansum())
    words = [f"{node} ({100 * float(share[i]):+.0f}%)" for i, node in enumerate(nodes) if verified[i] == 1]
    least = f"at least {100 * spec.search.verified_share:g}% in the direction its effect says"
    result.notes["verified"] = f"knocked out alone, moves the logit difference by {least}: " + (
        ", ".join(words) or "none"
    )
