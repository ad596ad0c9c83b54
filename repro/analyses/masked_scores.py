"""Log-likelihoods of all choices under many masks, kept on disk by weights, questions and mask.

So an interrupted run goes on, and what several experiments have in common (the whole model, FFNs alone, one
row of a grid) is computed once. Questions are taken in chunks of fixed borders, so that no number depends on
which of them are asked for.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from repro.analyses.importance_specs import EvaluationSettings
from repro.data.scored_texts import Question, TaskSet
from repro.errors import UserError
from repro.interventions.masked_rows import batches, pack, stack
from repro.interventions.masked_sweep import sweep
from repro.interventions.masks import Mask
from repro.models.language_model import LanguageModel
from repro.progress import Progress
from repro.results import write_atomic

STREAMS = 128  # masks in one sweep
OPT_ROWS, OPT_TOKENS = 50272, 50265  # OPT's unembedding has seven rows more than its tokenizer has tokens


@dataclass(frozen=True, eq=False)
class Cells:
    """Of every mask, question and choice: log-likelihood (NaN: no such choice), and whether it is greedy."""

    log_likelihood: np.ndarray  # [mask, question, choice], float64
    greedy: np.ndarray  # the same, bool


class MaskedScores:
    """Scores of a model's choices. directory: of the run; None: nothing is kept."""

    def __init__(self, model: LanguageModel, spec: EvaluationSettings, directory: Path | None) -> None:
        self._model, self._spec = model, spec
        self.columns = columns_of(model, spec.vocabulary)
        identity = fingerprint(model)
        shared = Path(spec.cells).expanduser() if spec.cells and identity else None
        self.folder = shared or (None if directory is None else Path(directory) / "cells")
        self.identity = f"{identity} {model.dtype} {self.columns}"

    def check(self, one: TaskSet) -> int:
        """How many choices of a task are cut. Raises `UserError` if none may be, or for targets cut off."""
        most, long = self._model.max_positions + 1, 0
        for number, question in enumerate(one.questions):
            for choice, ids in enumerate(question.choices):
                length = len(question.context(choice)) + len(ids)
                long += length > most
                if length > most and self._spec.overlength == "error":
                    raise UserError(
                        f"data: {one.label}, question {number} has {length} tokens with choice {choice}, and"
                        f" the model takes {most} ({most - 1} inputs and the last target). Give"
                        " analysis.overlength=left_truncate, or fewer demonstrations"
                    )
                if self.columns is not None and max(ids) >= self.columns:
                    raise UserError(
                        f"data: {one.label}, question {number}: token {max(ids)} of choice {choice} is not"
                        f" among the first {self.columns} that count. Give analysis.vocabulary=all"
                    )
        return long

    def of(
        self,
        questions: Sequence[Question],
        own: Sequence[int],
        masks: Sequence[Mask],
        bar: Progress | None = None,
    ) -> Cells:
        """Scores of the questions `own`, under every mask."""
        distinct = list(dict.fromkeys(masks))
        size, wanted = self._spec.chunk, set(own)
        kept: list[tuple[np.ndarray, np.ndarray]] = []
        for start in range(0, len(questions), size):
            numbers = [n for n in range(start, min(start + size, len(questions))) if n in wanted]
            if numbers:
                found = self._chunk(questions[start : start + size], distinct)
                at = [number - start for number in numbers]
                kept.append((found.log_likelihood[:, at], found.greedy[:, at]))
                if bar is not None:
                    bar.advance(len(numbers) * len(distinct))
        width = max(part.shape[2] for part, _ in kept)
        chances = np.concatenate([_widened(part, width, np.nan) for part, _ in kept], axis=1)
        greedy = np.concatenate([_widened(part, width, False) for _, part in kept], axis=1)
        order = [distinct.index(mask) for mask in masks]
        return Cells(chances[order], greedy[order])

    def of_sets(
        self, sets: Sequence[TaskSet], own: Sequence[int], masks: Sequence[Sequence[Mask]],
        bar: Progress | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Of some questions of all tasks in one row: log-likelihoods [cell, own, choice], and whether each
        token of the first choice is the likeliest [cell, own].

        masks: of every task, one a cell; as many for each. The number of choices is the largest of all tasks.
        """
        width = max(len(question.choices) for one in sets for question in one.questions)
        chances = np.full((len(masks[0]), len(own), width), np.nan)
        greedy = np.zeros(chances.shape[:2], dtype=bool)
        begin, done = 0, 0
        for one, its_masks in zip(sets, masks, strict=True):
            its = [number - begin for number in own if begin <= number < begin + len(one.questions)]
            if its:
                found = self.of(one.questions, its, its_masks, bar)
                rows = slice(done, done + len(its))
                chances[:, rows, : found.log_likelihood.shape[2]] = found.log_likelihood
                greedy[:, rows] = found.greedy[:, :, 0]
            begin, done = begin + len(one.questions), done + len(its)
        return chances, greedy

    def _chunk(self, questions: Sequence[Question], masks: Sequence[Mask]) -> Cells:
        path = self._path(questions)
        known = {} if path is None else _read(path)
        missing = [mask for mask in masks if mask.digest not in known]
        for start in range(0, len(missing), STREAMS):
            some = missing[start : start + STREAMS]
            found = evaluate(self._model, questions, some, self.columns, self._spec.tokens)
            pairs = zip(found.log_likelihood, found.greedy, strict=True)
            known.update({mask.digest: pair for mask, pair in zip(some, pairs, strict=True)})
            if path is not None:
                _write(path, {**_read(path), **known})  # another process may have added to it
        pairs = [known[mask.digest] for mask in masks]
        return Cells(np.stack([one for one, _ in pairs]), np.stack([one for _, one in pairs]))

    def _path(self, questions: Sequence[Question]) -> Path | None:
        if self.folder is None:
            return None
        asked = json.dumps([[one.contexts, one.choices] for one in questions])
        key = hashlib.sha256(f"{self.identity} {asked}".encode()).hexdigest()[:32]
        return self.folder / key[:2] / f"{key}.npz"


def evaluate(
    model: LanguageModel,
    questions: Sequence[Question],
    masks: Sequence[Mask],
    columns: int | None,
    tokens: int,
) -> Cells:
    """Scores of all choices of these questions, in passes of at most `tokens` padded tokens a stream."""
    shape = (len(masks), len(questions), max(len(one.choices) for one in questions))
    chances, greedy = np.full(shape, np.nan), np.zeros(shape, dtype=bool)
    for number, one in enumerate(questions):
        chances[:, number, : len(one.choices)], greedy[:, number, : len(one.choices)] = 0.0, True
    rows = [row for number, one in enumerate(questions) for row in pack(number, one, model.max_positions)]
    for some in batches(rows, tokens):
        found, batch = sweep(model, some, masks, columns), stack(some)
        at = (batch.question.numpy(), batch.choice.numpy())
        for place in range(len(masks)):
            np.add.at(chances[place], at, found.log_probability[place].numpy())
            np.logical_and.at(greedy[place], at, found.likeliest[place].numpy())
    return Cells(chances, greedy)


def columns_of(model: LanguageModel, vocabulary: Any) -> int | None:
    """How many logits count; None for all. Raises `UserError` for more than there are."""
    if vocabulary == "auto":
        return OPT_TOKENS if (model.family, model.vocabulary) == ("opt", OPT_ROWS) else None
    if vocabulary == "all":
        return None
    if vocabulary > model.vocabulary:
        raise UserError(f"analysis.vocabulary: got {vocabulary}; the model has {model.vocabulary}. Give all")
    return int(vocabulary)


@torch.no_grad()
def fingerprint(model: LanguageModel) -> str | None:
    """Which model it is: config, sums of its weights and some of them; None if some are not in memory."""
    digest = hashlib.sha256(str(sorted(model.hf.config.to_dict().items(), key=str)).encode())
    for name, weight in model.hf.state_dict().items():
        if weight.device.type == "meta":
            return None
        flat = weight.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // 64)].double().cpu().numpy()
        digest.update(name.encode() + some.tobytes())
        digest.update(np.float64(flat.sum(dtype=torch.float64).item()).tobytes())
    return digest.hexdigest()[:32]


def _widened(found: np.ndarray, width: int, fill: Any) -> np.ndarray:
    return np.pad(found, ((0, 0), (0, 0), (0, width - found.shape[2])), constant_values=fill)


def _read(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    try:
        with np.load(path, allow_pickle=False) as saved:
            parts = (saved["mask"].tolist(), saved["log_likelihood"], saved["greedy"])
            return {mask: (chances, first) for mask, chances, first in zip(*parts, strict=True)}
    except FileNotFoundError:
        return {}
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        path.unlink(missing_ok=True)
        return {}


def _write(path: Path, known: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    chances, greedy = (np.stack([pair[place] for pair in known.values()]) for place in range(2))
    write_atomic(
        path, lambda file: np.savez(file, mask=np.array(list(known)), log_likelihood=chances, greedy=greedy)
    )
