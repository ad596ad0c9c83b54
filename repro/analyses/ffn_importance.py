"""How many points of accuracy each FFN is worth: every one removed alone, all in one sweep over the layers.

    imp[layer] = 100 * (accuracy of the model - accuracy without the FFN of the layer)

Negative where removal helps. Source: Bansal et al. 2023, arXiv 2212.09095, section on FFN importance. It is
measured on the evaluation questions, on which pruning curves are measured, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from repro.analyses import lm_inputs as lm
from repro.analyses.importance_specs import FfnImportance
from repro.analyses.masked_scores import MaskedScores
from repro.analyses.scored_inputs import task_sets, with_questions
from repro.analyses.scored_metrics import accuracy, by_shot_and_name, means, question_arrays
from repro.data.scored_texts import TaskSet
from repro.interventions.masked_sweep import check_ffns
from repro.interventions.masks import Mask, rank_ffns
from repro.models.language_model import LanguageModel
from repro.progress import progress
from repro.results import NamedArray, Result
from repro.shards import WHOLE, Part, join

EARLY = 30 / 64  # share of the layers that count as early


def run(subject: Any, data: Any, record: Any, directory: Path | None, spec: FfnImportance) -> Result:
    """Accuracy without each FFN.

    loglik [ffn, question, choice]: log-likelihood in nats, of the whole model (index 0), then without the FFN
    of layer 0, 1, ...; NaN where a question has fewer choices; questions of all tasks in one row.
    task_accuracy [task, ffn], accuracy [ffn]: the mean over tasks, held-out ones left out. task_imp [task,
    layer], imp [layer] in points, and the same by shot_task_imp [shot, name, layer], shot_imp [shot, layer];
    ranking [rank]: layers, least important first. And what accuracy is made
    of (see `scored_metrics.question_arrays`). Scalars: questions, truncated; largest.TASK: the largest
    absolute value; K_shot.early.median, K_shot.early.mean, K_shot.late.mean: of tasks with K demonstrations,
    the largest median over tasks of the first 30 of 64 layers, the mean over these, and over the others.
    """
    return merge([run_part(subject, data, directory, spec, WHOLE)], spec)


def run_part(subject: Any, data: Any, directory: Path | None, spec: FfnImportance, part: Part) -> Result:
    """Log-likelihoods of some of the questions."""
    model = lm.model_of(subject)
    sets = with_questions(task_sets(model, data))
    own = part.of(range(sum(len(one.questions) for one in sets)))
    chances, greedy, truncated = without_each(model, sets, own, spec, directory)
    axes: dict[str, Any] = {"ffn": ["full", *(str(layer) for layer in range(model.depth))]}
    arrays = {
        "loglik": NamedArray(chances, {**axes, "question": len(own), "choice": chances.shape[2]}, "nats")
    }
    arrays.update(question_arrays(sets, own, greedy, axes, spec.held_out))
    arrays["truncated"] = NamedArray(np.array(truncated), {"task": [one.label for one in sets]})
    return Result({}, arrays, {"questions": str(data.source)})


def merge(parts: Sequence[Result], spec: FfnImportance) -> Result:
    """Accuracies, and what FFNs are worth."""
    result = join(parts, "question")
    arrays = result.arrays
    by_task = accuracy(arrays, arrays["loglik"].values)
    arrays.update(importance_arrays(arrays, by_task))
    worth = arrays["task_imp"].values
    early = round(EARLY * worth.shape[1])
    scalars = result.scalars
    scalars.update(
        questions=float(arrays["questions"].values.sum()), truncated=float(arrays["truncated"].values.sum())
    )
    for label, its in zip(arrays["task_imp"].labels("task"), worth, strict=True):
        scalars[f"largest.{label}"] = float(np.abs(its).max())
    for label in spec.report:
        scalars.setdefault(f"largest.{label}", float("nan"))
    shots = arrays["shots"].values
    for shot in sorted({int(one) for one in shots}):
        its = worth[shots == shot]
        scalars[f"{shot}_shot.early.median"] = float(np.median(its[:, :early], axis=0).max(initial=-np.inf))
        scalars[f"{shot}_shot.early.mean"] = float(its[:, :early].mean())
        scalars[f"{shot}_shot.late.mean"] = float(its[:, early:].mean())
    return result


def importance_arrays(arrays: dict[str, NamedArray], by_task: np.ndarray) -> dict[str, NamedArray]:
    """Accuracies [task, ffn] and points of accuracy, by task and in the mean."""
    labels = arrays["metric"].labels("task")
    tasks: dict[str, Any] = {"task": labels}
    layers: dict[str, Any] = {"layer": list(range(by_task.shape[1] - 1))}
    ffns: dict[str, Any] = {"ffn": arrays["loglik"].axes["ffn"]}
    mean, shots, by_shot = means(arrays, by_task)
    worth = importance_of(by_task)
    named, table = by_shot_and_name(arrays, worth)
    return {
        "task_accuracy": NamedArray(by_task, {**tasks, **ffns}),
        "accuracy": NamedArray(mean, ffns),
        "task_imp": NamedArray(worth, {**tasks, **layers}, "points"),
        "imp": NamedArray(importance_of(mean), layers, "points"),
        "shot_imp": NamedArray(importance_of(by_shot), {"shot": shots, **layers}, "points"),
        "shot_task_imp": NamedArray(table, {**named, **layers}, "points"),
        "ranking": NamedArray(rank_ffns(importance_of(mean)), {"rank": len(mean) - 1}),
    }


def importance_of(by_ffn: np.ndarray) -> np.ndarray:
    """Points of accuracy [.., layer] of accuracies [.., 1 + layer]."""
    return 100 * (by_ffn[..., :1] - by_ffn[..., 1:])


def without_each(
    model: LanguageModel, sets: Sequence[TaskSet], own: Sequence[int], spec: Any, directory: Path | None
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Log-likelihoods [1 + layer, own, choice], greedy matches [1 + layer, own], choices cut by task."""
    check_ffns(model)
    masks = [Mask.of(model.depth), *(Mask.of(model.depth, (), [layer]) for layer in range(model.depth))]
    scores = MaskedScores(model, spec, directory)
    truncated = [scores.check(one) for one in sets]
    with progress(len(own) * len(masks), "FFN importance", "questions x masks") as bar:
        chances, greedy = scores.of_sets(sets, own, [masks] * len(sets), bar)
    return chances, greedy, truncated
