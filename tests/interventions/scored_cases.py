"""Random questions as token ids, of many forms, for tiny models (61 tokens, 32 positions)."""

from __future__ import annotations

import random

from repro.data.scored_texts import Question
from repro.interventions.masks import Mask


def questions(seed: int = 0, count: int = 6) -> list[Question]:
    """Shared contexts, own ones with a common start or nothing in common, and over-long ones."""
    rng = random.Random(seed)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(2, 61) for _ in range(length))

    found = []
    for number in range(count):
        choices = tuple(ids(rng.randint(1, 4)) for _ in range(rng.randint(2, 4)))
        start = ids(rng.randint(2, 9))
        contexts: tuple[tuple[int, ...], ...] = (start,)
        if number % 4 == 1:
            contexts = tuple(start + ids(2) for _ in choices)
        if number % 4 == 2:
            contexts = tuple((place + 2, *ids(3)) for place, _ in enumerate(choices))
        if number % 4 == 3:
            contexts = (ids(31),)
            choices = (choices[0][:1] * 2, choices[0][:1] * 2 + choices[1], *choices[1:])
        found.append(Question(contexts, choices, (rng.randrange(len(choices)),), number // 2))
    return found


def some_masks(depth: int = 3, heads: int = 4, seed: int = 0, ffns: bool = True) -> list[Mask]:
    """Nothing, single heads and FFNs, several, and all heads of a layer."""
    rng = random.Random(seed)
    everywhere = [(layer, head) for layer in range(depth) for head in range(heads)]
    masks = [Mask.of(depth), Mask.of(depth, everywhere), Mask.of(depth, [(1, head) for head in range(heads)])]
    masks += [Mask.of(depth, rng.sample(everywhere, size)) for size in (1, 2, 5, 8)]
    if ffns:
        masks += [Mask.of(depth, (), [layer]) for layer in range(depth)]
        masks += [Mask.of(depth, rng.sample(everywhere, 4), [0, 2]), Mask.of(depth, (), range(depth))]
    return [*masks, Mask.of(depth)]
