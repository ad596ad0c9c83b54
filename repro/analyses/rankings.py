"""By what heads and FFNs are ranked: scores of the task itself, of others, of their mean, of files, or none.

Scores are computed where they are asked for, once, and kept with the cells of masked evaluations.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from repro.analyses.importance_specs import WORDS, Pruning, is_file
from repro.data.scored_texts import TaskSet
from repro.errors import UserError
from repro.results import read_json

KEYS = {"heads": ("score", "task_score"), "ffns": ("imp", "task_imp")}


class Rankings:
    """Scores of heads [layer, head] or FFNs [layer] by source.

    component: heads or ffns. shape: of one table. compute: the scores of a task. saved: file or folder with
    every task's, taken instead.
    """

    def __init__(
        self, component: str, shape: tuple[int, ...], sets: Sequence[TaskSet], spec: Pruning,
        compute: Callable[[TaskSet], np.ndarray], saved: str | None,
    ) -> None:  # fmt: skip
        self.component, self._shape, self._spec = component, shape, spec
        self._sets = {one.label: one for one in sets}
        self._compute, self._known = compute, {}
        if saved is not None:
            key = f"analysis.{'head' if component == 'heads' else 'ffn'}_scores"
            self._known = _tables(saved, KEYS[component][1], shape, key)

    def scores(self, source: str, one: TaskSet) -> np.ndarray:
        """The scores by which a task's components are ranked. Raises `UserError` for an unknown source."""
        word, _, rest = source.partition(":")
        if is_file(source):
            return _checked(
                _table(source, KEYS[self.component][0]), self._shape, f"analysis.ranking={source}"
            )
        if word == "own":
            return self._of(one.label)
        if word == "shot":
            return self._of(one.name if rest == "0" else f"{one.name}.{rest}shot")
        if word == "task":
            return self._of(rest)
        if word == "aggregate":
            return self._mean(int(rest) if rest else one.shot)
        if word in ("highest", "lowest"):
            return self._of(self.partner(word, one))
        seed = int(rest) if rest else self._spec.seed
        return np.random.default_rng(seed).permutation(int(np.prod(self._shape))).reshape(self._shape) * 1.0

    def partner(self, which: str, one: TaskSet) -> str:
        """The task whose scores agree most or least with a task's, by Spearman's rank correlation."""
        if one.label in self._spec.partners:
            return self._spec.partners[one.label][which == "lowest"]
        others = [label for label in self._counting(one.shot) if label != one.label]
        if not others:
            raise UserError(f"analysis.ranking={which}: there is no other task than {one.label}")
        mine = self._of(one.label).reshape(-1)
        agree = [float(spearmanr(mine, self._of(label).reshape(-1))[0]) for label in others]  # pyright: ignore
        return others[int(np.argmax(agree) if which == "highest" else np.argmin(agree))]

    def _of(self, label: str) -> np.ndarray:
        if label not in self._known:
            if label not in self._sets:
                raise UserError(
                    f"analysis.ranking: no task {label}. There are:"
                    f" {', '.join({**self._sets, **self._known})}"
                )
            self._known[label] = _checked(self._compute(self._sets[label]), self._shape, label)
        return self._known[label]

    def _counting(self, shot: int) -> list[str]:
        found = [
            label for label, one in self._sets.items()
            if one.shot == shot and not (one.held_out or {one.name, label} & set(self._spec.held_out))
        ]  # fmt: skip
        if not found:
            raise UserError(
                f"analysis.ranking=aggregate: no task with {shot} demonstrations is left to average"
            )
        return found

    def _mean(self, shot: int) -> np.ndarray:
        return np.mean([self._of(label) for label in self._counting(shot)], axis=0)


def check_sources(spec: Pruning) -> None:
    """Refuse sources that are neither a word nor there, before anything is loaded or computed."""
    for source in [*spec.ranking, *(spec.ffn_ranking or ())]:
        if is_file(source) and not Path(source).expanduser().exists():
            raise UserError(
                f"analysis.ranking: {source} is neither a file nor one of {', '.join(WORDS)}. Give own,"
                " shot:K, aggregate, task:NAME, highest, lowest, random:SEED, or a file (JSON, npz, a run's"
                " folder) with score[layer, head] or imp[layer]"
            )
        word, _, rest = source.partition(":")
        if (word in ("shot", "random") and source != "random" or word == "aggregate" and rest) and (
            not rest.isdigit()
        ):
            raise UserError(f"analysis.ranking: {source}: a number is needed after {word}:, e.g. {word}:0")


def remembered(
    folder: Path | None, key: Any, compute: Callable[[], np.ndarray], write: Callable[..., None]
) -> np.ndarray:
    """A table that is computed once for a key (anything JSON can hold), and read afterwards."""
    if folder is None:
        return compute()
    path = folder / "scores" / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.npz"
    try:
        with np.load(path, allow_pickle=False) as saved:
            return saved["scores"]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        found = compute()
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, lambda file: np.savez(file, scores=found))
        return found


def _arrays(source: str) -> tuple[Mapping[str, Any], Path]:
    """Named arrays of a JSON or npz file, or of a run."""
    path = Path(source).expanduser()
    path = path / "arrays.npz" if path.is_dir() else path
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as saved:
                return {name: saved[name] for name in saved.files}, path
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(
            f"analysis.ranking: {path} cannot be read as JSON or npz: {error}. Give a file with"
            " score[layer, head] or imp[layer], or the folder of a run"
        ) from None
    if isinstance(found, dict):
        return found, path
    return {"score": found, "imp": found}, path


def _table(source: str, key: str) -> Any:
    arrays, path = _arrays(source)
    if key not in arrays:
        raise UserError(f"analysis.ranking: {path} has no {key!r}. It has: {', '.join(arrays) or 'nothing'}")
    return arrays[key]


def _tables(source: str, key: str, shape: tuple[int, ...], where: str) -> dict[str, np.ndarray]:
    """The scores of every task of a run, or of a mapping from tasks to tables."""
    arrays, path = _arrays(source)
    if key not in arrays:
        tables = arrays.items()
    else:
        labels = read_json(path.parent / "arrays.json")[key]["axes"]["task"]
        tables = zip(labels, arrays[key], strict=True)
    return {label: _checked(table, shape, f"{where}, {label}") for label, table in tables}


def _checked(table: Any, shape: tuple[int, ...], where: str) -> np.ndarray:
    """Scores of this shape (or flat). Raises `UserError` for others, and for scores that are no numbers."""
    try:
        found = np.asarray(table, dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{where}: expected numbers of shape {list(shape)}; got {str(table)[:80]}") from None
    if found.shape == (int(np.prod(shape)),):
        found = found.reshape(shape)
    if found.shape != shape:
        raise UserError(
            f"{where}: expected one score for each component of this model, shape {list(shape)}"
            f" ({'[layer, head]' if len(shape) == 2 else '[layer]'}); got {list(found.shape)}. Was it made"
            " with another model?"
        )
    if np.isnan(found).any():
        raise UserError(f"{where}: {int(np.isnan(found).sum())} scores are NaN; a ranking needs numbers")
    return found
