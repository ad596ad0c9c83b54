"""Repeated random words and few-shot tasks with random labels, as something to train a model on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from repro.data import icl_world as world
from repro.data.lm_task_specs import InContextTask
from repro.data.lm_tasks import Scored, generator, padded

DRAWN = 3  # words that no repeated sequence is made of: the start and the two signs
# Kinds of the other sequences of a batch. Labels of items and groups are the hardest, and come more often.
TURNS = ("labels", "groups", "labels", "recall", "labels", "groups", "completion", "knowledge")


class InContext:
    """See `InContextTask`. Token ids are places in `icl_world.WORDS`."""

    def __init__(self, spec: InContextTask) -> None:
        self._spec = spec
        self.vocabulary = list(world.WORDS)
        self.start: str | None = world.START
        self.filler = 0
        self._ids = {word: i for i, word in enumerate(world.WORDS)}

    def batch(self, seed: int, step: int, size: int) -> Scored:
        """`size` sequences: the share `repeats` of repeated words, the others of the kinds in turn."""
        rng = generator("in-context train", seed, step)
        first, length = step < self._spec.repeats_first, self._spec.length
        repeated = size if first else round(self._spec.repeats * size)
        rows = [
            self._pairs(rng)
            if i % 2 and not first
            else self._repeats(rng, int(rng.integers(length // 8, length // 2 + 1)), not first)
            for i in range(repeated)
        ]
        kinds = [TURNS[i % len(TURNS)] for i in range(size - repeated)]
        return _scored([*rows, *(self._shots(rng, kind) for kind in kinds)])

    def probes(self) -> dict[str, Scored]:
        """repeats: blocks of a quarter of the length. pairs, KIND: as trained."""
        count, length = self._spec.probe_sequences, self._spec.length
        rng = generator("in-context probe repeats")
        made = {"repeats": _scored([self._repeats(rng, length // 4) for _ in range(count)])}
        rng = generator("in-context probe pairs")
        made["pairs"] = _scored([self._pairs(rng) for _ in range(count)])
        for kind in world.KINDS:
            rng = generator(f"in-context probe {kind}")
            made[kind] = _scored([self._shots(rng, kind) for _ in range(count)])
        return made

    def _repeats(
        self, rng: np.random.Generator, block: int, starts: bool = True
    ) -> tuple[list[int], list[bool]]:
        """`block` words repeated, with `starts` half the time behind a start token.

        Scored from the second of the second copy on.
        """
        words = DRAWN + rng.permutation(len(world.WORDS) - DRAWN)[:block]
        start = int(rng.integers(2)) if starts else 0
        columns = np.arange(self._spec.length - start)
        return [0] * start + words[columns % block].tolist(), [False] * start + (columns > block).tolist()

    def _pairs(self, rng: np.random.Generator) -> tuple[list[int], list[bool]]:
        """A start token or none, and pairs of words in random order; scored where a pair is not new."""
        count, start = int(rng.integers(3, self._spec.length // 4)), int(rng.integers(2))
        words = DRAWN + rng.permutation(len(world.WORDS) - DRAWN)[: 2 * count].reshape(count, 2)
        drawn = rng.integers(count, size=(self._spec.length - start) // 2).tolist()
        old = [pair in drawn[:place] for place, pair in enumerate(drawn)]
        scored = [told for seen in old for told in (False, seen)]
        return [0] * start + words[drawn].reshape(-1).tolist(), [False] * start + scored

    def _shots(self, rng: np.random.Generator, kind: str) -> tuple[list[int], list[bool]]:
        """As many documents of one task as fit; scored are the answers that can be known."""
        task, answer = world.random_task(kind, rng), _answers(kind)
        tokens: list[int] = []
        scored: list[bool] = []
        while True:
            made = world.document(task, rng)
            text = [self._ids[word] for word in made["text"].split()]
            if len(tokens) + len(text) + 2 > self._spec.length:
                return tokens, scored
            told = answer(made["text"].split())
            tokens += [*text, self._ids[made["choices"][made["gold"]]], self._ids[world.NEXT]]
            scored += [*[False] * len(text), told, False]


def build(spec: InContextTask) -> InContext:
    """The task of repeated words and demonstrations."""
    return InContext(spec)


def _answers(kind: str) -> Callable[[Sequence[str]], bool]:
    """Says of one text after another whether its answer can be known, from those before or of itself."""
    seen: set[str] = set()

    def known(text: Sequence[str]) -> bool:
        if kind not in ("labels", "groups"):
            return True
        key = text[0] if kind == "labels" else world.CATEGORY[text[0]]
        found = key in seen
        seen.add(key)
        return found

    return known


def _scored(rows: Sequence[tuple[list[int], list[bool]]]) -> Scored:
    return Scored(
        padded([tokens for tokens, _ in rows], 0), padded([scored for _, scored in rows], 0).astype(bool)
    )
