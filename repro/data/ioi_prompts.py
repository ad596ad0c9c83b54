"""Indirect-object prompts as values: a template's text, the words in its slots, and what is right and wrong.

A prompt stops before the name that is due (source: Wang et al. 2022, arXiv 2211.00593). S1 and S2 are the
two mentions of the subject; with different names in them the prompt belongs to the ABC family.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from repro.data.ioi_templates import SLOT, Template, order_of
from repro.data.ioi_words import PUBLISHED, Words
from repro.errors import UserError


@dataclass(frozen=True)
class Prompt:
    """One prompt. template: text with slots. io, s1, s2, c, place, object: the words in them.

    answer and wrong: the names whose logits are compared. final: the name written where a target is wanted.
    """

    template: str
    number: int
    io: str
    s1: str
    s2: str
    place: str
    object: str
    answer: str
    wrong: str
    final: str
    c: str = ""

    @property
    def order(self) -> str:
        """BABA (subject first) or ABBA."""
        return order_of(self.template)

    @property
    def is_abc(self) -> bool:
        """Whether three different names stand in the slots, so that nothing tells which one is due."""
        return len({self.io, self.s1, self.s2}) == 3

    @property
    def first(self) -> str:
        """The first name of the first clause."""
        return self.s1 if self.order == "BABA" else self.io

    @property
    def second(self) -> str:
        """The second name of the first clause."""
        return self.io if self.order == "BABA" else self.s1

    @property
    def text(self) -> str:
        """The prompt's words, up to and without the name that is due."""
        return self.render()[0]

    def render(self) -> tuple[str, dict[str, tuple[int, int]]]:
        """The text, and where (start, end) in it each slot's first mention stands."""
        words = {"IO": self.io, "S1": self.s1, "S2": self.s2, "C": self.c}
        words |= {"PLACE": self.place, "OBJECT": self.object}
        text, spans, done = "", {}, 0
        for slot in SLOT.finditer(self.template):
            text += self.template[done : slot.start()]
            word = words[slot[1]]
            spans.setdefault(slot[1], (len(text), len(text) + len(word)))
            text, done = text + word, slot.end()
        return text + self.template[done:], spans


@dataclass(frozen=True)
class PromptSet:
    """Prompts in order, the words that flips draw from, and the flips that made them (`history`)."""

    prompts: tuple[Prompt, ...]
    words: Words = PUBLISHED
    seed: int = 0
    history: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def texts(self) -> list[str]:
        """The prompts as text, without the name that is due."""
        return [prompt.text for prompt in self.prompts]

    @property
    def labels(self) -> tuple[list[str], list[str]]:
        """The answers and the wrong names, one a prompt."""
        return [prompt.answer for prompt in self.prompts], [prompt.wrong for prompt in self.prompts]

    @property
    def groups(self) -> dict[str, list[int]]:
        """Indices of the prompts that share a template (in the same order of names), by its text."""
        found: dict[str, list[int]] = {}
        for i, prompt in enumerate(self.prompts):
            found.setdefault(prompt.template, []).append(i)
        return found

    @property
    def sha256(self) -> str:
        """Checksum of all prompts: what stands in every slot, and the labels."""
        return hashlib.sha256(json.dumps(self.records()).encode()).hexdigest()

    def rows(self, index: Sequence[int]) -> PromptSet:
        """The chosen prompts, in the order given."""
        return replace(self, prompts=tuple(self.prompts[i] for i in index))

    def made(self, prompts: Iterable[Prompt], flip: str) -> PromptSet:
        """Other prompts that a flip made of these."""
        return replace(self, prompts=tuple(prompts), history=(*self.history, flip))

    def feature(self, name: str) -> list[Any]:
        """One value a prompt that a sampler may hold fixed: a field or a property of Prompt."""
        valid = [*(field.name for field in fields(Prompt)), "order", "is_abc", "first", "second", "text"]
        if name not in valid:
            raise UserError(f"prompt feature: got {name!r}. Valid choices: {', '.join(valid)}")
        return [getattr(prompt, name) for prompt in self.prompts]

    def records(self) -> list[dict[str, Any]]:
        """All that the prompts are, as plain values; `from_records` builds the same prompts again."""
        return [asdict(prompt) for prompt in self.prompts]


def from_records(records: Iterable[Mapping[str, Any]], words: Words = PUBLISHED, seed: int = 0) -> PromptSet:
    """Prompts from (perhaps edited) records. Raises `UserError` for missing or unknown keys."""
    prompts = []
    for i, record in enumerate(records):
        try:
            prompts.append(Prompt(**record))
        except TypeError as error:
            valid = ", ".join(field.name for field in fields(Prompt))
            raise UserError(f"prompt record {i}: {error}. Valid keys: {valid}") from None
    return PromptSet(tuple(prompts), words, seed)


def fill(template: Template, io: str, s: str, place: str = "", object: str = "", c: str = "") -> Prompt:
    """An IOI prompt: the subject in both its slots, the indirect object due."""
    return Prompt(template.text, template.number, io, s, s, place, object, io, s, io, c)


def draw(
    templates: Sequence[Template],
    words: Words,
    n: int,
    seed: int,
    *,
    symmetric: bool = False,
    pairs: Sequence[tuple[str, str]] | None = None,
) -> PromptSet:
    """`n` prompts: template, three distinct names, place and object, each uniform.

    symmetric: each draw emits the prompt with the two names exchanged, too (n even). pairs: unordered
    pairs of names that (IO, S) is one of, instead of any two; the third name is then another one.
    """
    rng = random.Random(f"prompts/{seed}")
    prompts: list[Prompt] = []
    while len(prompts) < n:
        template = rng.choice(templates)
        if pairs is None:
            io, s, c = rng.sample(words.names, 3)
        else:
            io, s = rng.sample(rng.choice(pairs), 2)
            c = rng.choice([name for name in words.names if name not in (io, s)])
        third = c if "[C]" in template.text else ""
        place, item = rng.choice(words.places), rng.choice(words.objects)
        prompts.append(fill(template, io, s, place, item, third))
        if symmetric:
            prompts.append(fill(template, s, io, place, item, third))
    return PromptSet(tuple(prompts), words, seed)
