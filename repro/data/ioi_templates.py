"""Templates of indirect-object prompts: texts with slots for names, place and object.

Slots are written [S] (subject, twice), [IO] (indirect object, once: the text stops before its second
mention), [C] (a third name, in three-name templates), [PLACE] and [OBJECT]. The order is BABA when the
subject comes first, ABBA when the indirect object does; one becomes the other by exchanging the two slots
of the first clause.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from repro.errors import UserError

SLOT = re.compile(r"\[([A-Z0-9]+)\]")
SLOTS = ("S", "IO", "C", "PLACE", "OBJECT")

# The published grammar (arXiv 2211.00593): opener, first-clause predicate with the join, second predicate.
_PARTS = (
    ("Then,", "went to the [PLACE].", "gave a [OBJECT] to"),
    ("Then,", "had a lot of fun at the [PLACE].", "gave a [OBJECT] to"),
    ("Then,", "were working at the [PLACE].", "decided to give a [OBJECT] to"),
    ("Then,", "were thinking about going to the [PLACE].", "wanted to give a [OBJECT] to"),
    ("Then,", "had a long argument, and afterwards", "said to"),
    ("After", "went to the [PLACE],", "gave a [OBJECT] to"),
    ("When", "got a [OBJECT] at the [PLACE],", "decided to give it to"),
    ("When", "got a [OBJECT] at the [PLACE],", "decided to give the [OBJECT] to"),
    ("While", "were working at the [PLACE],", "gave a [OBJECT] to"),
    ("While", "were commuting to the [PLACE],", "gave a [OBJECT] to"),
    ("After the lunch,", "went to the [PLACE].", "gave a [OBJECT] to"),
    ("Afterwards,", "went to the [PLACE].", "gave a [OBJECT] to"),
    ("Then,", "had a long argument. Afterwards", "said to"),
    ("The [PLACE]", "went to had a [OBJECT].", "gave it to"),
    ("Friends", "found a [OBJECT] at the [PLACE].", "gave it to"),
)
# Longer openers: those of 1-5 and 9-10 are quoted from the published code, the others are our own.
_LONG = (
    *["Then in the morning,"] * 5, "After taking a long break", "When soon after breakfast",
    "When soon after breakfast", "While spending time together", "While spending time together",
    "After the lunch in the afternoon,", "Afterwards, on the same day,", "Then in the morning,",
    "The big and old [PLACE]", "Friends of many long years",
)  # fmt: skip
# The templates whose opener ends with a comma.
_PAIRED = (1, 2, 3, 4, 5, 11, 12, 13)


@dataclass(frozen=True)
class Template:
    """One text with the slots [S1] [IO] [S2] and, where it has them, [C] [PLACE] [OBJECT]."""

    number: int
    text: str

    @classmethod
    def parse(cls, number: int, text: str) -> Template:
        """Check a text with [S] twice and [IO] once (a final [IO] may be written, too) and name its slots."""
        text = text.strip().removesuffix("[IO]").rstrip()
        found = SLOT.findall(text)
        wrong = [slot for slot in found if slot not in SLOTS]
        names = [slot for slot in found if slot in ("S", "IO")]
        if wrong or names not in (["S", "IO", "S"], ["IO", "S", "S"]):
            raise UserError(
                f"template {number}: expected [S] twice and [IO] once before the second [S], and at most [C],"
                f" [PLACE], [OBJECT] besides; got {text!r}."
                " Write e.g. 'Then, [S] and [IO] went to the [PLACE]. [S] gave a [OBJECT] to'"
            )
        return cls(number, text.replace("[S]", "[S1]", 1).replace("[S]", "[S2]", 1))

    @property
    def order(self) -> str:
        """BABA (subject first) or ABBA (indirect object first)."""
        return order_of(self.text)

    def in_order(self, order: str) -> Template:
        """The same template with the two names of the first clause in this order."""
        return self if order == self.order else Template(self.number, exchanged(self.text))


def order_of(text: str) -> str:
    """BABA or ABBA, from which of the slots [S1] and [IO] comes first."""
    return "BABA" if text.index("[S1]") < text.index("[IO]") else "ABBA"


def exchanged(text: str) -> str:
    """The text with the first [S1] and the first [IO] in each other's place."""
    text = text.replace("[IO]", "\0", 1).replace("[S1]", "[IO]", 1)
    return text.replace("\0", "[S1]", 1)


def family(name: str) -> tuple[Template, ...]:
    """All templates of a published family, subject first (BABA)."""
    texts = {
        "standard": lambda: [_text(opener, *rest) for opener, *rest in _PARTS],
        "long": lambda: [_text(opener, *part[1:]) for opener, part in zip(_LONG, _PARTS, strict=True)],
        "late": lambda: [_late(number) for number in _PAIRED],
        "early": lambda: [_early(_late(number)) for number in _PAIRED],
        "three_names": lambda: [_three(number) for number in (1, 2, 3, 4)],
    }
    if name not in texts:
        raise UserError(f"data.family: got {name!r}. Valid choices: {', '.join(texts)}")
    return own(texts[name]())


def own(texts: Sequence[str]) -> tuple[Template, ...]:
    """Templates from texts, numbered from 1, all with the subject first."""
    return tuple(Template.parse(i, text).in_order("BABA") for i, text in enumerate(texts, start=1))


def choose(
    templates: Sequence[Template], order: str, which: int | Sequence[int] | None, rng: random.Random
) -> tuple[Template, ...]:
    """The templates that prompts are drawn from.

    order mixed takes both orders of the same templates, shuffled: half of a family (7 of 15) or, for a
    number `which`, its half, so that there are `which` in all. A list of numbers takes just those.
    """
    if which is None:
        count = len(templates) // 2 if order == "mixed" and len(templates) > 1 else len(templates)
        chosen = list(templates[:count])
    elif isinstance(which, int):
        chosen = list(templates[: which // 2 if order == "mixed" else which])
    else:
        chosen = [template for template in templates if template.number in which]
    most = len(templates) * (2 if order == "mixed" else 1)
    bad_list = not isinstance(which, int | None) and len(chosen) != len(set(which))
    if not chosen or (isinstance(which, int) and which > most) or bad_list:
        raise UserError(
            f"data.templates: got {which}. Valid: a number up to {most} (even if order is mixed), or a list"
            f" of numbers from 1 to {len(templates)}"
        )
    if order != "mixed":
        return tuple(template.in_order(order) for template in chosen)
    both = [template.in_order(each) for each in ("BABA", "ABBA") for template in chosen]
    rng.shuffle(both)
    return tuple(both)


def _text(opener: str, first: str, second: str) -> str:
    return f"{opener} [S] and [IO] {first} [S] {second}"


def _late(number: int) -> str:
    # Number 5 already joins with ", and": its late form drops the word, so that the early one can add it.
    return _text(*_PARTS[number - 1]).replace(", and afterwards", ", afterwards")


def _early(late: str) -> str:
    """No comma after the opener, ", and" as join: the first names move one token to the left."""
    early = late.replace(", [S] and", " [S] and", 1).replace(", afterwards", ", and afterwards")
    return early.replace(". [S]", ", and [S]").replace(". Afterwards", ", and afterwards")


def _three(number: int) -> str:
    opener, first, second = _PARTS[number - 1]
    return f"{opener} [S], [IO] and [C] {first} [S] and [C] {second}"
