"""Head importance of tasks and shots as one array: saved by a run, in a JSON file, or computed here."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from repro import results
from repro.analyses import head_importance
from repro.analyses.importance_specs import HeadImportance
from repro.analyses.overlap_specs import ComparedImportance
from repro.errors import UserError

_SHOT = re.compile(r"\.(\d+)shot$")


@dataclass(frozen=True)
class Tables:
    """values [shot, task, layer, head]; source: what reports say of it."""

    shots: list[Any]
    tasks: list[Any]
    values: np.ndarray
    held_out: Sequence[str]
    source: str

    @property
    def aggregate(self) -> np.ndarray:
        """Plain mean over the tasks that are not held out, [shot, layer, head]."""
        counts = [name not in self.held_out for name in self.tasks]
        return self.values[:, counts if any(counts) else slice(None)].mean(1)

    def flat(self, with_aggregate: bool = True) -> tuple[list[Any], np.ndarray]:
        """Names and scores [shot, task, head], the aggregate as the last task."""
        joined = np.concatenate([self.values, self.aggregate[:, None]], axis=1)
        found = joined if with_aggregate else self.values
        names = [*self.tasks, "aggregate"] if with_aggregate else self.tasks
        return names, found.reshape(*found.shape[:2], -1)


def tables(subject: Any, data: Any, directory: Path | None, spec: ComparedImportance) -> Tables:
    """The importance that a spec asks for.

    Raises `UserError` for files without it, and where no task was measured with all numbers of shots.
    """
    if spec.scores is not None:
        found, held = saved(spec.scores)
        source = f"head importance from {Path(spec.scores).name}"
    else:
        settings = spec.importance.model_dump()
        asked = HeadImportance(**settings, held_out=spec.held_out)
        result = head_importance.run(subject, data, None, directory, asked)
        found, held = _of_result(result)
        source = f"head importance computed here: {data.source}"
    shots: list[Any] = sorted({shot for _, shot in found})
    names = list(dict.fromkeys(name for name, _ in found))
    tasks: list[Any] = [name for name in names if all((name, shot) in found for shot in shots)]
    if not tasks:
        raise UserError(
            f"analysis.scores: no task was measured with all of {', '.join(map(str, shots))} demonstrations;"
            f" there are {', '.join(names)}. Give data.shots and data.tasks to one run of head_importance"
        )
    stacked = np.stack([np.stack([found[name, shot] for name in tasks]) for shot in shots])
    return Tables(shots, tasks, stacked, [*spec.held_out, *held], source)


Found = dict[tuple[str, int], np.ndarray]


def saved(source: str) -> tuple[Found, list[str]]:
    """Tables [layer, head] by task and shots, of a run's folder or a JSON file, and the tasks held out."""
    path = Path(source).expanduser()
    if path.is_dir() or path.name == "arrays.npz":
        return _of_result(results.load(path if path.is_dir() else path.parent))
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        found = {_named(label): np.asarray(table, dtype=np.float64) for label, table in listed.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f'analysis.scores: {path}: expected {{"task": [[...]], "task.1shot": [[...]]}} with one score a'
            f" layer and head, or the folder of a run ({error})"
        ) from None
    if (
        not found
        or any(one.ndim != 2 for one in found.values())
        or len({o.shape for o in found.values()}) > 1
    ):
        raise UserError(f"analysis.scores: {path}: expected tables [layer, head] of one shape, not empty")
    return found, []


def score_of(source: str, key: str) -> np.ndarray:
    """`score` [layer, head] of a run of prefix_matching or copying."""
    path = Path(source).expanduser()
    result = results.load(path if path.is_dir() else path.parent)
    if "score" not in result.arrays or result.arrays["score"].values.ndim != 2:
        raise UserError(f"{key}: {path} has no score[layer, head]. Give the folder of a run of it")
    return result.arrays["score"].values


def _of_result(result: results.Result) -> tuple[Found, list[str]]:
    if "task_score" not in result.arrays:
        raise UserError(
            f"analysis.scores: this run has no task_score. It has: {', '.join(result.arrays)}. Give the"
            " folder of a run of head_importance"
        )
    array = result.arrays["task_score"]
    labels = [_named(str(label)) for label in array.labels("task")]
    counts = result.arrays["counts"].values if "counts" in result.arrays else np.ones(len(labels), dtype=bool)
    held = {name for (name, _), does in zip(labels, counts, strict=True) if not does}
    return dict(zip(labels, array.values, strict=True)), sorted(held)


def _named(label: str) -> tuple[str, int]:
    """Name and shots of "rte.5shot"."""
    shot = _SHOT.search(label)
    return (label, 0) if shot is None else (label[: shot.start()], int(shot[1]))
