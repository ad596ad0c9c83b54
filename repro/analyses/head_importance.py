"""How important each head is for the right continuations of a task's training examples.

Source: Bansal et al. 2023, arXiv 2212.09095, section on head importance. Method and formula:
`repro/interventions/head_importance.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from repro.analyses import lm_inputs as lm
from repro.analyses.importance_specs import HeadImportance, HeadImportanceSettings
from repro.analyses.partial import Partial
from repro.analyses.scored_inputs import fitted, task_sets
from repro.analyses.scored_metrics import means, task_arrays
from repro.data.scored_texts import TaskSet
from repro.interventions.head_importance import Fitted, How, importance
from repro.interventions.masked_rows import alike
from repro.models.language_model import LanguageModel
from repro.progress import progress
from repro.results import NamedArray, Result
from repro.shards import WHOLE, Part, join

TOP = 0.1  # share of heads that count as the most important ones


def run(subject: Any, data: Any, record: Any, directory: Path | None, spec: HeadImportance) -> Result:
    """Scores of all heads on every task of the data.

    per_example [example, layer, head]: s_i, in nats; number, task, inputs, targets, cut [example]: number in
    its task, number of the task, input tokens N_i - 1, target tokens T_i, tokens lost on the left.
    task_score [task, layer, head]: sum of s_i over sum of inputs, in the last layer over sum of targets.
    score [layer, head]: mean over tasks, held-out ones left out; shot_score [shot, layer, head]: of tasks
    with so many demonstrations, and shot_relative: over the largest of these. given, kept [task]: examples
    there were, and were not dropped.
    Scalars: examples, truncated, dropped; top.middle_share and top.middle_share.K_shot: of the 10 % of heads
    with the highest scores, the share in the middle half of the layers.
    """
    return merge([run_part(subject, data, directory, spec, WHOLE)], spec)


@dataclass(frozen=True)
class Item:
    """An example that is kept. task: number of its task; number: of the example in it."""

    task: int
    number: int
    example: Fitted


def run_part(subject: Any, data: Any, directory: Path | None, spec: HeadImportance, part: Part) -> Result:
    """s_i of some of the examples."""
    model = lm.model_of(subject)
    sets = task_sets(model, data)
    items = items_of(model, sets, spec)
    own = part.of(range(len(items)))
    found = measured(model, items, own, spec, directory)
    mine = [items[index] for index in own]
    axes: dict[str, Any] = {"example": len(mine)}
    numbers = {
        "number": [one.number for one in mine],
        "task": [one.task for one in mine],
        "inputs": [len(one.example.tokens) - 1 for one in mine],
        "targets": [one.example.targets for one in mine],
        "cut": [one.example.cut for one in mine],
    }
    arrays = {name: NamedArray(np.array(some, dtype=np.int64), axes) for name, some in numbers.items()}
    heads: dict[str, Any] = {"layer": list(range(model.depth)), "head": list(range(model.heads))}
    arrays["per_example"] = NamedArray(found, {**axes, **heads}, "nats")
    tasks: dict[str, Any] = {"task": [one.label for one in sets]}
    kept = [sum(one.task == place for one in items) for place in range(len(sets))]
    arrays["given"] = NamedArray(np.array([len(one.examples) for one in sets]), tasks)
    arrays["kept"] = NamedArray(np.array(kept), tasks)
    arrays.update(task_arrays(sets, spec.held_out))
    return Result({}, arrays, _notes(sets, data, spec))


def merge(parts: Sequence[Result], spec: HeadImportance) -> Result:
    """Scores, in the order of tasks and of examples in them."""
    result = join(parts, "example")
    arrays = result.arrays
    order = np.lexsort((arrays["number"].values, arrays["task"].values))
    for name in ("per_example", "number", "task", "inputs", "targets", "cut"):
        found = arrays[name]
        arrays[name] = NamedArray(found.values[order], found.axes, found.unit)
    heads = {axis: found for axis, found in arrays["per_example"].axes.items() if axis != "example"}
    tasks = arrays["given"].axes
    scores = _by_task(arrays, len(tasks["task"]), spec)  # type: ignore[arg-type]
    arrays["task_score"] = NamedArray(scores, {**tasks, **heads}, "nats")
    mean, distinct, by_shot = means(arrays, scores)
    arrays["score"] = NamedArray(mean, heads, "nats")
    arrays["shot_score"] = NamedArray(by_shot, {"shot": distinct, **heads}, "nats")
    largest = by_shot.max((1, 2), keepdims=True)
    arrays["shot_relative"] = NamedArray(
        by_shot / np.where(largest > 0, largest, 1), {"shot": distinct, **heads}
    )
    result.scalars.update(
        examples=float(arrays["kept"].values.sum()),
        dropped=float((arrays["given"].values - arrays["kept"].values).sum()),
        truncated=float((arrays["cut"].values > 0).sum()),
    )
    result.scalars["top.middle_share"] = middle_share(arrays["score"].values)
    for shot, score in zip(distinct, by_shot, strict=True):
        result.scalars[f"top.middle_share.{shot}_shot"] = middle_share(score)
    return result


def middle_share(score: np.ndarray) -> float:
    """Of the heads with the highest scores [layer, head], the share in the middle half of the layers."""
    depth, heads = score.shape
    count = max(1, int(TOP * score.size))
    layers = np.argsort(-score.reshape(-1), kind="stable")[:count] // heads
    return float(((layers >= depth // 4) & (layers < depth - depth // 4)).mean())


def items_of(model: LanguageModel, sets: Sequence[TaskSet], spec: HeadImportanceSettings) -> list[Item]:
    """The kept examples of all tasks; in each, those of similar length stand together."""
    found = []
    for place, one in enumerate(sets):
        kept = [Item(place, *pair) for pair in zip(*fitted(model, one, spec.overlength), strict=True)]
        found += sorted(kept, key=lambda item: -len(item.example.tokens))
    return found


def measured(
    model: LanguageModel, items: Sequence[Item], own: Sequence[int], spec: HeadImportanceSettings,
    directory: Path | None, name: str = "head_importance",
) -> np.ndarray:  # fmt: skip
    """s_i [own, layer, head] of the items `own`; what an interrupted run has found is not done again.

    Batches are made of all items, whatever is asked for, so that no number depends on who asks.
    """
    how = How(spec.absolute, spec.loss, spec.loss_scale, spec.recompute)
    wanted, partial = set(own), Partial(directory, name)
    try:
        with progress(len(own), "head importance", "examples") as bar:
            bar.advance(len(wanted & partial.values.keys()))
            for batch in _batches(items, spec.tokens):
                missing = [index for index in batch if index in wanted and index not in partial.values]
                if not missing:
                    continue
                scores = importance(model, [items[index].example for index in batch], how).numpy()
                partial.add(missing, scores[[batch.index(index) for index in missing]])
                bar.advance(len(missing))
    except BaseException:
        partial.write()
        raise
    found = np.stack([partial.values[index] for index in own])
    partial.clear()
    return found


def scores_of(
    model: LanguageModel, one: TaskSet, spec: HeadImportanceSettings, directory: Path | None
) -> np.ndarray:
    """Scores [layer, head] of one task, in one piece."""
    items = items_of(model, [one], spec)
    found = measured(model, items, range(len(items)), spec, directory, f"head_importance_{one.label}")
    order = np.argsort([item.number for item in items], kind="stable")
    inputs = np.array([len(items[at].example.tokens) - 1 for at in order])
    targets = np.array([items[at].example.targets for at in order])
    return _score(found[order], inputs, targets, spec)


def _batches(items: Sequence[Item], tokens: int) -> Iterator[list[int]]:
    begin = 0
    for _, some in groupby(items, key=lambda item: item.task):
        lengths = [len(item.example.tokens) - 1 for item in some]
        for batch in alike(lengths, tokens):
            yield [begin + index for index in batch]
        begin += len(lengths)


def _by_task(arrays: dict[str, NamedArray], count: int, spec: HeadImportance) -> np.ndarray:
    task = arrays["task"].values
    found = []
    for place in range(count):
        its = task == place
        of, inputs, targets = (arrays[name].values[its] for name in ("per_example", "inputs", "targets"))
        found.append(_score(of, inputs, targets, spec))
    return np.stack(found)


def _score(
    per_example: np.ndarray, inputs: np.ndarray, targets: np.ndarray, spec: HeadImportanceSettings
) -> np.ndarray:
    """sum of s_i over sum of inputs; the last layer's over sum of targets: only there it has gradients."""
    total = per_example.astype(np.float64).sum(0)
    divisor = np.full(len(total), float(inputs.sum()))
    if spec.last_layer_divisor == "targets":
        divisor[-1] = float(targets.sum())
    return total / divisor[:, None]


def _notes(sets: Sequence[TaskSet], data: Any, spec: HeadImportance) -> dict[str, str]:
    notes = {
        "importance": f"loss of {spec.loss}, absolute value of each {spec.absolute}, last layer divided by"
        f" {spec.last_layer_divisor}; over-long examples: {spec.overlength}",
        "examples": str(data.source),
    }
    own = [one.label for one in sets if one.importance_of_evaluation]
    return {**notes, "of_evaluation": f"examples of the evaluation split: {', '.join(own)}"} if own else notes
