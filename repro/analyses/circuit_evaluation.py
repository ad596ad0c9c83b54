"""Is a circuit all that matters (faithful, complete), and does all of it matter (minimal)?

Source: Wang et al. 2022, arXiv 2211.00593, section 4. F(C) is the mean logit difference with every head
output outside the circuit at its mean by template and position; MLPs stay as they are. C\\K and M\\K are
circuit and whole model without the nodes K.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repro.analyses import lm_inputs as lm
from repro.analyses.circuit_search import FOUND, resolve
from repro.analyses.circuits import Circuit, Node, means_of, node_masks, per_prompt, standard_error
from repro.analyses.greedy_sets import Objective, greedy
from repro.analyses.lm_circuit_specs import CircuitEvaluation, Greedy
from repro.data.token_pairs import PromptPairs
from repro.errors import UserError
from repro.interventions.knockout_sets import KnockoutSets
from repro.interventions.mean_ablation import Means
from repro.models.language_model import LanguageModel
from repro.progress import progress
from repro.results import NamedArray, Result

Nodes = frozenset[Node]
NONE = "none"


def run(subject: Any, data: Any, record: Any, directory: Path | None, spec: CircuitEvaluation) -> Result:
    """Faithfulness, completeness for classes, random and greedy sets, and minimality; likewise naive.* .

    Arrays, in logits: class.circuit, class.model, class.gap (|F(C\\K) - F(M\\K)|), class.gap_se [set]
    (sets: none, classes, those given); class.circuit_per_prompt, class.model_per_prompt [set, prompt];
    random.circuit, random.model, random.gap [draw], random.members [draw, node]; greedy.circuit,
    greedy.model, greedy.gap [run], the best runs first, greedy.members [run, node], greedy.path [run, step];
    minimality.removed F(C\\(K+v)), minimality.kept F(C\\K), minimality.score (size of their difference),
    minimality.score_se, minimality.share (of F(M)) [node]. Scalars: model.mean, .sd, .se; circuit.mean, .sd,
    .se; faithfulness.gap, .se, .share, .recovered; class.NAME.circuit, class.NAME.model; random.gap.mean,
    .median, .max, random.correlation; greedy.gap.max; minimality.least (share), .passed, .nodes.
    Standard errors are over prompts, of differences prompt by prompt.
    """
    model = lm.model_of(subject)
    pairs = lm.pairs_of(model, data)
    circuit = resolve(model, data, pairs, spec)
    means, reference = means_of(model, data, pairs, spec)
    naive = None
    if spec.naive and circuit.source != FOUND:
        naive = Circuit.of(spec.naive, circuit.source, f"naive version of the {circuit.source} circuit")
        naive.check(model, pairs)
    result = Result({}, {}, {"reference": reference, "circuit": _words(circuit)})
    whole = Scores(model, pairs, None, means, spec.batch)
    most = _work(circuit, naive, spec) * len(pairs)
    with progress(most, "knocking out", "prompts") as bar:
        for prefix, one, candidates in (
            ("", circuit, spec.greedy.candidates), ("naive.", naive, spec.naive_candidates),
        ):  # fmt: skip
            if one is None:
                continue
            scores = Scores(model, pairs, one, means, spec.batch)
            strict = one is circuit and circuit.source != FOUND
            both = _Both(one, scores, whole, bar.advance)
            part = _faithfulness(both)
            _merge(
                part,
                _classes(both, _named(one, spec, strict)),
                _random(both, spec),
                _greedy(both, spec, candidates),
            )
            if one is circuit:
                _merge(part, _minimality(both, spec))
            result.scalars.update({prefix + name: value for name, value in part.scalars.items()})
            result.arrays.update({prefix + name: array for name, array in part.arrays.items()})
            result.notes.update({prefix + name: text for name, text in part.notes.items()})
        bar.set(most)
    return result


class Scores:
    """Logit differences [B] of a circuit, or of the whole model (None), without sets of nodes.

    Each set is computed once. Raises `UserError` for positions that the data do not have.
    """

    def __init__(
        self, model: LanguageModel, pairs: PromptPairs, circuit: Circuit | None, means: Means, batch: int
    ) -> None:
        self._model, self._pairs, self._circuit = model, pairs, circuit
        self._means, self._batch = means, batch
        self._known: dict[Nodes, Tensor] = {}

    def of(self, sets: Sequence[Nodes], advance: Callable[[int], None] | None = None) -> Tensor:
        """[set, B], in float64. advance: told how many (set, prompt) are done."""
        missing = [nodes for nodes in dict.fromkeys(sets) if nodes not in self._known]
        if advance is not None:
            advance((len(sets) - len(missing)) * len(self._pairs))
        if missing:
            parts = [self._part(rows, missing, advance) for rows in lm.chunks(len(self._pairs), self._batch)]
            self._known |= dict(zip(missing, per_prompt(parts), strict=True))
        return torch.stack([self._known[nodes] for nodes in sets])

    def _part(self, rows: slice, sets: Sequence[Nodes], advance: Callable[[int], None] | None) -> Tensor:
        pairs = lm.part_of(self._pairs, rows)
        end = pairs.positions[lm.ANSWER]

        def masks(nodes: Iterable[Node]) -> Any:
            return node_masks(self._model, pairs.clean, pairs.positions, list(nodes))

        kept = None if self._circuit is None else masks(self._circuit.nodes)
        subject = KnockoutSets(self._model, pairs.clean, pairs.groups, end, self._means, kept)
        told = None if advance is None else (lambda count: advance(count * len(pairs)))
        resid = subject.resid([masks(nodes) for nodes in sets], told)
        values = lm.logit_difference(self._model, resid.flatten(0, 1), lm.answer_columns(pairs), end)
        return values.view(len(sets), -1)


class _Both:
    """A circuit's scores beside those of the whole model."""

    def __init__(
        self, circuit: Circuit, scores: Scores, whole: Scores, advance: Callable[[int], None]
    ) -> None:  # fmt: skip
        self.circuit, self._scores, self._whole, self._advance = circuit, scores, whole, advance

    def __call__(self, sets: Sequence[Nodes]) -> tuple[Tensor, Tensor]:
        """Logit differences of C\\K and of M\\K, [set, B] each."""
        return self._scores.of(sets, self._advance), self._whole.of(sets, self._advance)

    def kept(self, sets: Sequence[Nodes]) -> Tensor:
        """Those of C\\K alone."""
        return self._scores.of(sets, self._advance)

    def gaps(self, sets: Sequence[Nodes]) -> np.ndarray:
        """|F(C\\K) - F(M\\K)| [set]."""
        inside, outside = self(sets)
        return (inside.mean(-1) - outside.mean(-1)).abs().numpy()


def _faithfulness(both: _Both) -> Result:
    inside, outside = (values[0] for values in both([frozenset()]))
    gap = float((inside - outside).mean().abs())
    scalars = {**lm.summary("circuit", inside), **lm.summary("model", outside)}
    scalars |= {"faithfulness.gap": gap, "faithfulness.se": standard_error(inside - outside)}
    scalars["faithfulness.share"] = gap / abs(float(outside.mean()))
    scalars["faithfulness.recovered"] = float(inside.mean() / outside.mean())
    scalars["circuit.nodes"] = len(both.circuit.nodes)
    return Result(scalars, {}, {})


def _named(circuit: Circuit, spec: CircuitEvaluation, strict: bool) -> dict[str, Nodes]:
    """Nothing, each class, and the sets that the config names; unless strict, of classes that there are."""
    named = {NONE: frozenset(), **{name: frozenset(nodes) for name, nodes in circuit.classes.items()}}
    for name, members in spec.sets.items():
        if name in named:
            raise UserError(f"analysis.sets: {name!r} is a class already. Choose another name")
        known = members if strict else [one for one in members if one in circuit.classes]
        if known:
            named[name] = frozenset(circuit.choose(known, f"analysis.sets.{name}"))
    return named


def _classes(both: _Both, sets: dict[str, Nodes]) -> Result:
    names = list(sets)
    inside, outside = both(list(sets.values()))
    result = _compared("class", inside, outside, {"set": names})
    prompts = inside.shape[1]
    result.arrays["class.circuit_per_prompt"] = lm.array(inside, {"set": names, "prompt": prompts}, "logit")
    result.arrays["class.model_per_prompt"] = lm.array(outside, {"set": names, "prompt": prompts}, "logit")
    for i, name in enumerate(names):
        result.scalars[f"class.{name}.circuit"] = float(inside[i].mean())
        result.scalars[f"class.{name}.model"] = float(outside[i].mean())
    result.scalars["class.gap.max"] = float((inside - outside).mean(-1).abs().max())
    return result


def _random(both: _Both, spec: CircuitEvaluation) -> Result:
    nodes, count = both.circuit.nodes, spec.random_sets
    if not count:
        return Result()
    members = np.random.default_rng([spec.seed, 0]).random((count, len(nodes))) < 0.5
    inside, outside = both([_chosen(nodes, row) for row in members])
    result = _compared("random", inside, outside, {"draw": count})
    result.arrays["random.members"] = _members(members, nodes, {"draw": count})
    gaps = result.arrays["random.gap"].values
    for name in ("mean", "median", "max"):
        result.scalars[f"random.gap.{name}"] = float(getattr(np, name)(gaps))
    if count > 1:
        means = [values.mean(-1).numpy() for values in (inside, outside)]
        varied = min(values.std() for values in means) > 0
        result.scalars["random.correlation"] = (
            float(np.corrcoef(np.stack(means))[0, 1]) if varied else float("nan")
        )
    return result


def _greedy(both: _Both, spec: CircuitEvaluation, candidates: int) -> Result:
    settings: Greedy = spec.greedy.model_copy(update={"candidates": candidates})
    if not settings.runs:
        return Result()
    nodes = both.circuit.nodes
    objective: Objective = lambda sets: both.gaps([frozenset(nodes[i] for i in one) for one in sets])  # noqa: E731
    runs = greedy(len(nodes), objective, settings, spec.seed)
    best = sorted(range(len(runs)), key=lambda i: -runs[i].path[-1])[: settings.keep]
    axes: dict[str, Any] = {"run": [f"greedy {i}" for i in best]}
    members = np.array([[n in runs[i].members for n in range(len(nodes))] for i in best])
    inside, outside = both([_chosen(nodes, row) for row in members])
    result = _compared("greedy", inside, outside, axes)
    result.arrays["greedy.members"] = _members(members, nodes, axes)
    path = np.array([runs[i].path for i in best])
    result.arrays["greedy.path"] = NamedArray(path, {**axes, "step": path.shape[1]}, "logit")
    result.scalars["greedy.gap.max"] = float(result.arrays["greedy.gap"].values.max())
    result.notes["greedy"] = "; ".join(
        ", ".join(str(nodes[n]) for n in runs[i].members) or "no set" for i in best
    )
    return result


def _minimality(both: _Both, spec: CircuitEvaluation) -> Result:
    circuit = both.circuit
    sets = [minimality_set(circuit, node, spec) for node in circuit.nodes]
    kept = both.kept(sets)
    removed = both.kept([nodes | {node} for nodes, node in zip(sets, circuit.nodes, strict=True)])
    _, whole = both([frozenset()])
    axes = {"node": [str(node) for node in circuit.nodes]}
    score = (removed - kept).mean(-1).abs()
    share = score / whole.mean().abs()
    errors = torch.tensor([standard_error(row) for row in removed - kept])
    values = {"removed": removed.mean(-1), "kept": kept.mean(-1), "score": score, "score_se": errors}
    arrays = {f"minimality.{name}": lm.array(value, axes, "logit") for name, value in values.items()}
    arrays["minimality.share"] = lm.array(share, axes)
    scalars = {
        "minimality.least": float(share.min()),
        "minimality.passed": float((share >= spec.minimality_share).sum()),
        "minimality.nodes": float(len(circuit.nodes)),
    }
    return Result(scalars, arrays, {})


def minimality_set(circuit: Circuit, node: Node, spec: CircuitEvaluation) -> Nodes:
    """K for a node v: as given for its head, else the rest of its class; never v itself."""
    given = spec.minimality_sets.get(node.written)
    if given is None or circuit.source == FOUND:  # heads of another model, with the same numbers
        return frozenset(circuit[circuit.class_of(node)]) - {node}
    where = f"analysis.minimality_sets.{node.written}"
    return frozenset(circuit.choose(given, where)) - {node}


def _compared(name: str, inside: Tensor, outside: Tensor, axes: dict[str, Any]) -> Result:
    gap = (inside - outside).mean(-1)
    errors = torch.tensor([standard_error(row) for row in inside - outside])
    values = {"circuit": inside.mean(-1), "model": outside.mean(-1), "gap": gap.abs(), "gap_se": errors}
    return Result({}, {f"{name}.{key}": lm.array(value, axes, "logit") for key, value in values.items()})


def _chosen(nodes: Sequence[Node], row: np.ndarray) -> Nodes:
    return frozenset(node for node, chosen in zip(nodes, row, strict=True) if chosen)


def _members(members: np.ndarray, nodes: Sequence[Node], axes: dict[str, Any]) -> NamedArray:
    return NamedArray(members.astype(np.uint8), {**axes, "node": [str(node) for node in nodes]})


def _merge(into: Result, *parts: Result) -> None:
    for part in parts:
        into.scalars.update(part.scalars)
        into.arrays.update(part.arrays)
        into.notes.update(part.notes)


def _words(circuit: Circuit) -> str:
    classes = (f"{name}: {', '.join(map(str, nodes))}" for name, nodes in circuit.classes.items())
    return f"{circuit.note}. " + "; ".join(classes)


def _work(circuit: Circuit, naive: Circuit | None, spec: CircuitEvaluation) -> int:
    """How many (set, subject) are asked for at most; a greedy run may have fewer candidates left."""
    count = 2 * (len(circuit.nodes) + 1)
    for one, candidates in ((circuit, spec.greedy.candidates), (naive, spec.naive_candidates)):
        if one is not None:
            tried = spec.greedy.runs * (spec.greedy.steps * min(candidates, len(one.nodes)) + 1)
            count += 2 * (2 + len(one.classes) + len(spec.sets) + spec.random_sets + tried)
    return count
