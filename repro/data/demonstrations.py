"""Which documents are shown before which: few-shot draws, ours and those of the released evaluation.

Ours: every document of a split has a generator of its own, seeded with the text
"demonstrations/SEED/TASK/SHOTS/SPLIT/DOCUMENT", so that neither the number of documents, nor their order, nor
another task changes what a document is shown. Released: one stream, `Random(42)`, shuffles the evaluation
documents, and draws for each in that order.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Literal

from repro.errors import UserError

Draws = Literal["seeded", "released"]
RELEASED_SEED = 42


def seeded(
    seed: int, task: str, shots: int, split: str, document: int, pool: int, without: int | None = None
) -> list[int]:
    """Numbers of `shots` different documents of a pool of `pool`. without: one that is never drawn."""
    check(task, shots, pool - (without is not None))
    rng = random.Random(f"demonstrations/{seed}/{task}/{shots}/{split}/{document}")
    if without is None:
        return rng.sample(range(pool), shots)
    return [drawn + (drawn >= without) for drawn in rng.sample(range(pool - 1), shots)]


def released(task: str, shots: int, documents: int, pool: int | None) -> Iterator[tuple[int, list[int]]]:
    """Numbers of evaluation documents in the released order, each with those shown before it.

    pool: number of training documents. None: there are none, so that shots + 1 evaluation documents are
    drawn, and the document itself, or else the last one, is left out.
    """
    check(task, shots, documents - 1 if pool is None else pool)
    rng, order = random.Random(RELEASED_SEED), list(range(documents))
    rng.shuffle(order)
    for document in order:
        if not shots:
            yield document, []
        elif pool is not None:
            yield document, rng.sample(range(pool), shots)
        else:
            # Shuffled in place: the list that is drawn from is in the order of the data.
            drawn = rng.sample(range(documents), shots + 1)
            yield document, [one for one in drawn if one != document][:shots]


def capped(seed: int, task: str, documents: int, most: int | None) -> Sequence[int]:
    """All document numbers, or a sample of `most` drawn with the seed, in the order of the data."""
    if most is None or most >= documents:
        return range(documents)
    return sorted(random.Random(f"questions/{seed}/{task}").sample(range(documents), most))


def check(task: str, shots: int, pool: int) -> None:
    """Refuse more demonstrations than there are documents to draw them from."""
    if shots > pool:
        raise UserError(
            f"data.shots: task {task} has {pool} documents to show, fewer than {shots}."
            f" Give data.shots=[{max(pool, 0)}] or more documents"
        )
