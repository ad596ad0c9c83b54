"""The prompts of Redwood's REMIX notebooks, drawn with the same random stream as there (Python `random`).

The notebooks seed one global generator, draw the prompts from it, and every flip goes on drawing from it in
the order of the prompts. But building the flipped dataset seeds it again with 42, so only the first flip
after the prompts were drawn continues their stream; every later one starts from the seed. A new name
differs from the other names of its prompt and may be the old one again.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from repro.data.ioi_flips import replace_io, replace_s
from repro.data.ioi_prompts import Prompt, PromptSet, fill
from repro.data.ioi_templates import exchanged, family
from repro.data.ioi_words import PUBLISHED
from repro.errors import UserError

RESEED = 42


class Notebook:
    """The notebooks' generator: prompts drawn once, then flips, which re-seed it after each.

    An object with a state on purpose: what a flip draws depends on what was drawn before it.
    """

    def __init__(self, n: int = 50, seed: int = 42, order: str = "BABA") -> None:
        self._rng = random.Random(seed)
        template = family("standard")[0].in_order(order)
        self.prompts = PromptSet(tuple(self._draw(template) for _ in range(n)), PUBLISHED, seed)

    def _draw(self, template: object) -> Prompt:
        rng, words = self._rng, PUBLISHED
        rng.choice([template])  # the choice among one active template uses up random bits, too
        s = rng.choice(words.names)
        io = self._name({s})
        place, item = rng.choice(words.places), rng.choice(words.objects)
        return fill(template, io, s, place, item)  # type: ignore[arg-type]

    def _name(self, others: set[str]) -> str:
        while (name := self._rng.choice(PUBLISHED.names)) in others:
            pass
        return name

    def flip(self, prompts: PromptSet, name: str) -> PromptSet:
        """One flip: IO or S (stays IOI), S1 or S2 (becomes ABC), IO1, IO2 (first-clause names of ABC), order
        (slots follow) and exchange (values of the first clause change places, slots stay).

        Raises `UserError` for other names, and for order, IO1 and IO2 in the wrong family.
        """
        made = [self._flipped(prompt, name) for prompt in prompts.prompts]
        self._rng.seed(RESEED)
        return prompts.made(made, name)

    def _flipped(self, prompt: Prompt, name: str) -> Prompt:
        if name in ("IO1", "IO2"):
            _require(prompt.is_abc, name, "prompts with three names", "flip S1 or S2 first")
            return self._flip_first_clause(prompt, prompt.first if name == "IO1" else prompt.second)
        if name == "IO":
            return replace_io(prompt, self._name({prompt.s1, prompt.s2}))
        if name == "S" and not prompt.is_abc:
            return replace_s(prompt, self._name({prompt.io}))
        if name == "S1":
            return replace(prompt, s1=self._name({prompt.io, prompt.s2}))
        if name in ("S", "S2"):
            return replace(prompt, s2=self._name({prompt.io, prompt.s1}))
        if name == "order":
            _require(not prompt.is_abc, name, "prompts with two names", "use exchange")
            return replace(prompt, template=exchanged(prompt.template))
        if name == "exchange":
            return replace(prompt, io=prompt.s1, s1=prompt.io)
        raise UserError(f"flip: got {name!r}. Valid choices: IO, S, S1, S2, IO1, IO2, order, exchange")

    def _flip_first_clause(self, prompt: Prompt, old: str) -> Prompt:
        field = "io" if prompt.io == old else "s1"
        new = self._name({prompt.io, prompt.s1, prompt.s2} - {old})
        return replace(prompt, **{field: new})


def corrupted(
    n: int, seed: int, order: str, chain: Sequence[str], continues: bool | None
) -> tuple[PromptSet, PromptSet]:
    """Prompts and their flipped twins. continues: whether the first flip goes on in the prompts' stream.

    None does as the notebooks: the flip of IO alone was made first, every other one after it.
    """
    notebook = Notebook(n, seed, order)
    if not (list(chain) == ["IO"] if continues is None else continues):
        notebook._rng.seed(RESEED)
    flipped = notebook.prompts
    for name in chain:
        flipped = notebook.flip(flipped, name)
    return notebook.prompts, flipped


def _require(holds: bool, name: str, what: str, fix: str) -> None:
    if not holds:
        raise UserError(f"flip {name}: expected {what}; {fix}")
