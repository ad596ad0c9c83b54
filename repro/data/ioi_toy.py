"""A small world of indirect-object sentences of our own: 111 words, for a model that is trained here.

8 templates of 13 to 15 tokens before the answer, 60 names, 10 places, 10 objects, 30 other words and a
start token. A share of the unordered pairs of names never occurs in training, so a score on those pairs
says whether the model has learned the rule, not the sentences.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int

from repro.data.ioi_prompts import PromptSet, draw
from repro.data.ioi_templates import Template, own
from repro.data.ioi_words import NAMES, Words
from repro.data.word_tokenizer import WordTokenizer
from repro.errors import UserError

START = "<start>"
_TEMPLATES = (
    "Then, [S] and [IO] went to the [PLACE]. [S] gave a [OBJECT] to",
    "When [S] and [IO] got a [OBJECT] at the [PLACE], [S] handed it to",
    "After [S] and [IO] went to the [PLACE], [S] gave a [OBJECT] to",
    "While [S] and [IO] were working at the [PLACE], [S] gave a [OBJECT] to",
    "Later [S] and [IO] found a [OBJECT] at the [PLACE]. [S] showed it to",
    "Today [S] and [IO] had lunch at the [PLACE]. [S] spoke to",
    "Friends [S] and [IO] had fun at the [PLACE]. [S] sold a [OBJECT] to",
    "At the [PLACE] [S] and [IO] found a [OBJECT], [S] sent it to",
)
# Everything that is no name, place or object: 30 words. All lists below are made of them.
_OTHER = (
    ". , and went to the gave a When got at it After While were Later found Today had lunch spoke Friends fun"
    " sold At sent Then working handed showed"
).split()
WORLD = Words(
    names=NAMES[:60],
    places=(
        "store",
        "garden",
        "school",
        "hospital",
        "office",
        "house",
        "station",
        "park",
        "library",
        "market",
    ),
    objects=("ring", "kiss", "bone", "computer", "necklace", "drink", "snack", "book", "letter", "ball"),
    animals=("ring", "bone", "book"),  # no animals in this world: things stand in for them
    prefixes=("Today,", "Later, at lunch,", "After a working lunch,"),
    place_prefix="Later, at the [PLACE],",
    phrases=("and a", "and the", "and got to"),
    asides=(", at lunch,", ", working,"),
    middles=("at lunch", "and had fun"),
    sentences=("X had fun.", "X had lunch.", "X got lunch.", "X went to lunch.", "X found it."),
    templates=_TEMPLATES,
)


@dataclass(frozen=True)
class Toy:
    """The world with its pairs of names split in two by `split_seed`."""

    held_out_share: float = 0.2
    split_seed: int = 0

    @cached_property
    def tokenizer(self) -> WordTokenizer:
        """Start token, other words, names, places, objects."""
        return WordTokenizer((START, *_OTHER, *WORLD.names, *WORLD.places, *WORLD.objects))

    @cached_property
    def templates(self) -> tuple[Template, ...]:
        """Both orders of the eight templates."""
        return tuple(each.in_order(order) for order in ("BABA", "ABBA") for each in own(_TEMPLATES))

    def pairs(self, split: str) -> list[tuple[str, str]]:
        """Unordered pairs of names: all 1,770, those of training (`train`) or the others (`held_out`)."""
        every = list(itertools.combinations(WORLD.names, 2))
        count = round(self.held_out_share * len(every))
        held_out = set(random.Random(f"pairs/{self.split_seed}").sample(every, count))
        choices = {
            "all": every,
            "held_out": [pair for pair in every if pair in held_out],
            "train": [pair for pair in every if pair not in held_out],
        }
        if split not in choices:
            raise UserError(f"data.split: got {split!r}. Valid choices: {', '.join(choices)}")
        return choices[split]

    def prompts(self, n: int, seed: int, split: str = "held_out", order: str = "mixed") -> PromptSet:
        """Prompts over the pairs of one part, in one order or both."""
        chosen = [each for each in self.templates if order in ("mixed", each.order)]
        return draw(chosen, WORLD, n, seed, pairs=self.pairs(split))

    def training_sentences(
        self, seed: int, n: int, split: str = "train"
    ) -> tuple[Int[np.ndarray, "n position"], Bool[np.ndarray, "n position"]]:
        """`n` whole sentences: start token, prompt, indirect object. Right-padded ids, and True where real.

        Both orders, names from the pairs of `split`. The window is that of the longest template, so all
        batches have one shape, (n, 17).
        """
        made = self.prompts(n, seed, split)
        tokens = np.full((n, self.window), self.tokenizer.pad_token_id, dtype=np.int64)
        mask = np.zeros((n, self.window), dtype=bool)
        for i, prompt in enumerate(made.prompts):
            ids = self.tokenizer.encode(f"{prompt.text} {prompt.final}", add_special_tokens=True)
            tokens[i, : len(ids)], mask[i, : len(ids)] = ids, True
        return tokens, mask

    @property
    def window(self) -> int:
        """Tokens of the longest sentence: start, 15 of the template, answer."""
        return 17
