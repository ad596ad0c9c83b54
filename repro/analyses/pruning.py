"""Accuracy when the least important heads and FFNs are removed, by percentage and by what ranks them.

The first floor(p * N / 100) of N components go, ranked once on the whole model, ties as they lie. Source:
Bansal et al. 2023, arXiv 2212.09095, sections on pruning and on transfer across tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from repro.analyses import lm_inputs as lm
from repro.analyses.ffn_importance import importance_of, without_each
from repro.analyses.head_importance import scores_of
from repro.analyses.importance_specs import Pruning, is_file
from repro.analyses.masked_scores import MaskedScores
from repro.analyses.rankings import Rankings, check_sources, remembered
from repro.analyses.scored_inputs import task_sets, with_questions
from repro.analyses.scored_metrics import accuracy, by_shot_and_name, means, question_arrays
from repro.data.scored_texts import TaskSet
from repro.errors import UserError
from repro.interventions.masked_sweep import check_ffns
from repro.interventions.masks import Mask, count, prune, rank_ffns, rank_heads
from repro.models.language_model import LanguageModel
from repro.progress import progress
from repro.results import NamedArray, Result, write_atomic
from repro.shards import WHOLE, Part, join

HARMLESS = 5.0  # points of accuracy that removal may cost up to its knee


def run(subject: Any, data: Any, record: Any, directory: Path | None, spec: Pruning) -> Result:
    """Accuracy by percentage.

    The axes of a cell are `level` (percent removed), or `head_percent` and `ffn_percent` where both are.
    accuracy [cell]: mean over tasks, held-out ones left out, with the first ranking; ranking_accuracy
    [ranking, cell]; task_accuracy [task, ranking, cell]; shot_accuracy [shot, ranking, cell]: means of tasks
    with so many demonstrations. percent.by_task [shot, name, cell], percent.by_shot [shot, cell]: in %, with
    the first ranking; percent.by_ranking [task, ranking, cell]. loglik [ranking, cell, question, choice] in
    nats; removed_heads, removed_ffns [cell]. head_score [ranking, task, layer, head], ffn_imp [ranking, task,
    layer]: what ranked the components.
    Scalars: accuracy.hP.fQ and drop.hP.fQ (in points) at P % of heads and Q % of FFNs in the mean; K_shot.…
    (with `both` also K_shot.knee.…, see `knees`) and TASK.… the same of tasks with K demonstrations, and of
    single ones.
    """
    return merge([run_part(subject, data, directory, spec, WHOLE)], spec)


@dataclass(frozen=True)
class _Asked:
    """The tasks that are pruned, their masks by cell, and the scores that ranked."""

    sets: list[TaskSet]
    masks: list[list[Mask]]
    tables: dict[str, np.ndarray]


def run_part(subject: Any, data: Any, directory: Path | None, spec: Pruning, part: Part) -> Result:
    """Log-likelihoods of some of the questions, in all cells."""
    model = lm.model_of(subject)
    check_sources(spec)
    if any(ffns for _, ffns in spec.levels):
        check_ffns(model)
    sets = task_sets(model, data)
    evaluated = with_questions(_evaluated(sets, spec))
    own = part.of(range(sum(len(one.questions) for one in evaluated)))
    scores = MaskedScores(model, spec, directory)
    truncated = [scores.check(one) for one in evaluated]
    asked = _asked(model, sets, evaluated, scores, spec, directory)
    with progress(len(own) * len(set(asked.masks[0])), "pruning", "questions x masks") as bar:
        chances, greedy = scores.of_sets(evaluated, own, asked.masks, bar)
    axes = _axes(spec)
    shape = [len(extent) for extent in axes.values()]
    arrays = {
        "loglik": NamedArray(
            chances.reshape(*shape, *chances.shape[1:]),
            {**axes, "question": len(own), "choice": chances.shape[2]}, "nats",
        )
    }  # fmt: skip
    greedy = greedy.reshape(*shape, len(own))
    arrays.update(question_arrays(evaluated, own, greedy, axes, spec.held_out))
    arrays["truncated"] = NamedArray(np.array(truncated), {"task": [one.label for one in evaluated]})
    arrays.update(_table_arrays(asked, axes, model))
    arrays.update(_removed(model, axes, spec))
    own_sets = [one.label for one in evaluated if one.importance_of_evaluation]
    notes = {"questions": str(data.source), "ranking": ", ".join(spec.ranking)}
    if own_sets and "head_score" in arrays and not all(map(is_file, spec.ranking)):
        notes["of_evaluation"] = f"heads ranked on the evaluation questions: {', '.join(own_sets)}"
    if spec.component != "heads" and not all(map(is_file, spec.ffn_ranking or spec.ranking)):
        notes["selection"] = "FFNs are ranked on the questions that accuracy is measured on, as published"
    return Result({}, arrays, notes)


def merge(parts: Sequence[Result], spec: Pruning) -> Result:
    """Accuracies by task, in the means, and as scalars."""
    result = join(parts, "question")
    arrays, scalars = result.arrays, result.scalars
    by_task = accuracy(arrays, arrays["loglik"].values)  # [task, ranking, cell..]
    labels = arrays["metric"].labels("task")
    axes = {axis: at for axis, at in arrays["loglik"].axes.items() if axis not in ("question", "choice")}
    cell = {axis: at for axis, at in axes.items() if axis != "ranking"}
    mean, distinct, by_shot = means(arrays, by_task)
    arrays["task_accuracy"] = NamedArray(by_task, {"task": labels, **axes})
    arrays["ranking_accuracy"] = NamedArray(mean, axes)
    arrays["accuracy"] = NamedArray(mean[0], cell)
    shots: dict[str, Any] = {"shot": distinct}
    arrays["shot_accuracy"] = NamedArray(by_shot, {**shots, **axes})
    arrays["percent.by_shot"] = NamedArray(100 * by_shot[:, 0], {**shots, **cell}, "%")
    names, table = by_shot_and_name(arrays, by_task[:, 0])
    arrays["percent.by_task"] = NamedArray(100 * table, {**names, **cell}, "%")
    arrays["percent.by_ranking"] = NamedArray(100 * by_task, {"task": labels, **axes}, "%")
    scalars["questions"] = float(arrays["questions"].values.sum())
    scalars["truncated"] = float(arrays["truncated"].values.sum())
    named = {"": mean, **{f"{shot}_shot.": its for shot, its in zip(distinct, by_shot, strict=True)}}
    absent = np.full(by_task.shape[1:], np.nan)
    named |= {f"{label}.": absent for label in spec.report}
    named |= {f"{label}.": its for label, its in zip(labels, by_task, strict=True)}
    for prefix, table in named.items():
        for place, ranking in enumerate(axes["ranking"]):  # type: ignore[arg-type]
            middle = "" if place == 0 else f"{_word(ranking)}."
            scalars.update(_scalars(f"{_word(prefix)}{middle}", table[place].reshape(-1), spec))
    if spec.component == "both":
        for shot, its in zip(distinct, by_shot, strict=True):
            scalars.update({f"{shot}_shot.{name}": value for name, value in knees(its[0], spec).items()})
    return result


def knees(accuracy: np.ndarray, spec: Pruning) -> dict[str, float]:
    """How far removal goes at a loss of at most 5 points, of accuracies [head_percent, ffn_percent].

    knee.heads, knee.ffns: the largest percentage alone. knee.moved: how many percent of components the joint
    removal has to stay behind these, at least, in the component that gives way more.
    """
    harmless = 100 * (accuracy[0, 0] - accuracy) <= HARMLESS
    heads, ffns = np.array(spec.head_percents), np.array(spec.ffn_percents)
    alone = heads[harmless[:, 0]].max(), ffns[harmless[0]].max()
    behind = np.maximum(alone[0] - heads[:, None], alone[1] - ffns[None])
    return {
        "knee.heads": float(alone[0]),
        "knee.ffns": float(alone[1]),
        "knee.moved": float(np.maximum(behind[harmless], 0).min()),
    }


def _scalars(prefix: str, found: np.ndarray, spec: Pruning) -> dict[str, float]:
    scalars, base = {}, None
    for (heads, ffns), value in zip(spec.levels, found, strict=True):
        name = f"h{heads:g}.f{ffns:g}"
        scalars[f"{prefix}accuracy.{name}"] = float(value)
        base = float(value) if heads == ffns == 0 else base
    if base is not None:
        for (heads, ffns), value in zip(spec.levels, found, strict=True):
            scalars[f"{prefix}drop.h{heads:g}.f{ffns:g}"] = 100 * (base - float(value))
    return scalars


def _word(text: Any) -> str:
    """A text as part of a scalar's name."""
    return "".join(one if one.isalnum() or one in "_.:+=-" else "_" for one in str(text))


def _evaluated(sets: Sequence[TaskSet], spec: Pruning) -> list[TaskSet]:
    if spec.evaluate is None:
        return list(sets)
    if spec.evaluate == "held_out":
        found = [one for one in sets if one.held_out or {one.name, one.label} & set(spec.held_out)]
        if not found:
            raise UserError(
                "analysis.evaluate: held_out, and no task of this data is. Give analysis.held_out=[NAME], or"
                f" analysis.evaluate=null. Tasks: {', '.join(one.label for one in sets)}"
            )
        return found
    names = {name for one in sets for name in (one.name, one.label)}
    unknown = [name for name in spec.evaluate if name not in names]
    if unknown:
        raise UserError(
            f"analysis.evaluate: no task {', '.join(unknown)}. There are:"
            f" {', '.join(one.label for one in sets)}"
        )
    return [one for one in sets if {one.name, one.label} & set(spec.evaluate)]


def _axes(spec: Pruning) -> dict[str, Any]:
    """Ranking, then the cell's own axes, labelled in percent."""
    names: list[Any] = []
    for source in spec.ranking:
        name = Path(source).stem if is_file(source) else source
        names.append(name if name not in names else source)
    if spec.component == "both":
        return {
            "ranking": names,
            "head_percent": _labels(spec.head_percents),
            "ffn_percent": _labels(spec.ffn_percents),
        }
    percents = spec.head_percents if spec.component == "heads" else spec.ffn_percents
    return {"ranking": names, "level": _labels(percents)}


def _labels(percents: Sequence[float]) -> list[Any]:
    return [int(one) if one == int(one) else one for one in percents]


def _asked(
    model: LanguageModel, sets: Sequence[TaskSet], evaluated: list[TaskSet], scores: MaskedScores,
    spec: Pruning, directory: Path | None,
) -> _Asked:  # fmt: skip
    """Rank, and make the masks of every task: rankings in order, and all cells of each."""

    def of_heads(one: TaskSet) -> np.ndarray:
        plain = spec.importance.model_dump(mode="json", exclude={"tokens", "recompute"})
        key = [scores.identity, plain, [[each.context, each.continuation] for each in one.examples]]
        return remembered(
            scores.folder, key, lambda: scores_of(model, one, spec.importance, directory), write_atomic
        )

    def of_ffns(one: TaskSet) -> np.ndarray:
        own = range(len(one.questions))
        chances, greedy, _ = without_each(model, [one], own, spec, directory)
        arrays = question_arrays([one], own, greedy, {"ffn": len(greedy)})
        return importance_of(accuracy(arrays, chances)[0])

    heads = Rankings("heads", (model.depth, model.heads), sets, spec, of_heads, spec.head_scores)
    ffns = Rankings("ffns", (model.depth,), sets, spec, of_ffns, spec.ffn_scores)
    tables: dict[str, list[np.ndarray]] = {}
    masks: list[list[Mask]] = [[] for _ in evaluated]
    for head_source, ffn_source in zip(spec.ranking, spec.ffn_ranking or spec.ranking, strict=True):
        for one, its_masks in zip(evaluated, masks, strict=True):
            head_rank = ffn_rank = np.array([], dtype=int)
            if spec.component != "ffns":
                tables.setdefault("head_score", []).append(heads.scores(head_source, one))
                head_rank = rank_heads(tables["head_score"][-1])
            if spec.component != "heads":
                tables.setdefault("ffn_imp", []).append(ffns.scores(ffn_source, one))
                ffn_rank = rank_ffns(tables["ffn_imp"][-1])
            its_masks += [
                prune(model.depth, model.heads, head_rank, of_heads_, ffn_rank, of_ffns_)
                for of_heads_, of_ffns_ in spec.levels
            ]
    return _Asked(evaluated, masks, {name: np.stack(found) for name, found in tables.items()})


def _table_arrays(asked: _Asked, axes: dict[str, Any], model: LanguageModel) -> dict[str, NamedArray]:
    rankings: dict[str, Any] = {"ranking": axes["ranking"], "task": [one.label for one in asked.sets]}
    layers: dict[str, Any] = {"layer": list(range(model.depth))}
    heads: dict[str, Any] = {"head": list(range(model.heads))}
    found = {}
    for name, table in asked.tables.items():
        shape = (len(axes["ranking"]), len(asked.sets), *table.shape[1:])
        its = {**rankings, **layers, **(heads if name == "head_score" else {})}
        found[name] = NamedArray(table.reshape(shape), its)
    return found


def _removed(model: LanguageModel, axes: dict[str, Any], spec: Pruning) -> dict[str, NamedArray]:
    cell = {axis: extent for axis, extent in axes.items() if axis != "ranking"}
    shape = [len(extent) for extent in cell.values()]
    found = [
        (count(heads, model.depth * model.heads), count(ffns, model.depth)) for heads, ffns in spec.levels
    ]
    parts = zip(("removed_heads", "removed_ffns"), zip(*found, strict=True), strict=True)
    return {name: NamedArray(np.array(some).reshape(shape), cell) for name, some in parts}
