"""A small world of facts of our own: subjects of two or three names, four relations, 64 attributes.

Names are shared between subjects, so no single one gives a subject away, and attributes are drawn at random,
so nothing but memory tells them. Every sentence goes on for at least three words after its subject: a model
whose first two layers see two tokens each cannot have brought the subject to the last word before the third.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property

from repro.data.facts_records import Fact
from repro.data.word_tokenizer import WordTokenizer
from repro.errors import UserError

START = "<start>"
AFTER_SUBJECT = 3  # words of every template behind the subject, at least

_FIRST = (
    "Ada Alan Anna Arthur Bella Boris Carl Clara Diana Edgar Elena Emil Flora Frank Greta Gustav Hanna "
    "Hugo Ida Ivan Jonas Julia Karl Laura Leo Lydia Marta Max Nina Oscar Paula Peter Rosa Rudolf Sara "
    "Simon Thea Victor Wanda Yuri"
).split()
_MIDDLE = (
    "Alba Bruno Celia Dorian Esme Fabian Gloria Hector Iris Joel Kira Linus Mina Noel Olga Piers "
    "Quentin Rita Silas Tessa"
).split()
_LAST = (
    "Abbott Becker Castro Dalton Eriksen Fischer Garcia Hansen Ivanov Jansen Keller Larsen Moreau Novak "
    "Olsen Petrov Quinn Rossi Santos Tanaka Ueda Varga Weber Xu Yilmaz Zeller Almeida Brandt Cohen "
    "Duarte Egger Ferrari Gruber Horvat Iversen Jung Kovacs Lindberg Meyer Nilsson"
).split()


@dataclass(frozen=True)
class Relation:
    """What can be asked: two templates with {} for the subject, and the 16 possible answers."""

    name: str
    templates: tuple[str, str]
    attributes: tuple[str, ...]


RELATIONS = (
    Relation(
        "instrument",
        ("{} plays music on the", "on stage {} is heard playing the"),
        tuple("piano violin cello flute guitar drums harp trumpet organ oboe banjo tuba lute horn clarinet"
              " viola".split()),
    ),
    Relation(
        "birthplace",
        ("{} was born in", "the old birthplace of {} is the city"),
        tuple("Paris Berlin Madrid Rome Vienna Lisbon Athens Oslo Prague Dublin Cairo Lima Tokyo Delhi Boston"
              " Quito".split()),
    ),
    Relation(
        "profession",
        ("{} earns money as a", "by trade {} has been a"),
        tuple("baker lawyer doctor farmer pilot teacher sailor painter judge miner nurse tailor butcher"
              " writer plumber banker".split()),
    ),
    Relation(
        "colour",
        ("{} likes to wear", "people all know {} by the colour"),
        tuple("red blue green yellow purple orange brown black white pink grey gold silver violet crimson"
              " beige".split()),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class FactWorld:
    """`subjects` people, each with one attribute of every relation, drawn by `seed`."""

    subjects: int = 200
    seed: int = 0
    withheld_share: float = 0.2

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The subjects: half of them two names, half three, all different."""
        rng, found = random.Random(f"subjects/{self.seed}"), dict[str, None]()
        while len(found) < self.subjects:
            parts = [rng.choice(_FIRST), rng.choice(_MIDDLE), rng.choice(_LAST)]
            found[" ".join(parts if len(found) % 2 else parts[::2])] = None
        return tuple(found)

    @cached_property
    def attributes(self) -> dict[tuple[str, str], str]:
        """The attribute of each (subject, name of the relation)."""
        rng = random.Random(f"attributes/{self.seed}")
        return {
            (subject, relation.name): rng.choice(relation.attributes)
            for subject in self.names
            for relation in RELATIONS
        }

    @cached_property
    def withheld(self) -> frozenset[tuple[str, str]]:
        """The facts that training says in the first template only."""
        every = list(self.attributes)
        count = round(self.withheld_share * len(every))
        return frozenset(random.Random(f"withheld/{self.seed}").sample(every, count))

    @cached_property
    def tokenizer(self) -> WordTokenizer:
        """Start token, words of the templates, names, attributes."""
        words = dict.fromkeys(
            word for relation in RELATIONS for text in relation.templates for word in text.split()
        )
        del words["{}"]
        attributes = [word for relation in RELATIONS for word in relation.attributes]
        return WordTokenizer((START, *words, *_FIRST, *_MIDDLE, *_LAST, *attributes))

    def prompts(self, templates: str = "trained", n: int | None = None, seed: int = 0) -> list[Fact]:
        """All prompts of some templates, or `n` of them drawn without repeats, in order of the world.

        templates: `first` of each relation, `trained` (both, but for withheld facts), or `withheld`.
        Raises `UserError` if there are fewer than `n`.
        """
        every = [
            self._fact(subject, relation, which)
            for subject in self.names
            for relation in RELATIONS
            for which in self._which(templates, subject, relation)
        ]
        if n is None:
            chosen = every
        elif n > len(every):
            raise UserError(
                f"data.n: this world has {len(every)} such prompts; got {n}. Give data.n=null for all"
            )
        else:
            places = random.Random(f"prompts/{seed}").sample(range(len(every)), n)
            chosen = [every[i] for i in sorted(places)]
        return [Fact(i, f"prompt {i} of the small world", *parts) for i, parts in enumerate(chosen)]

    def _which(self, templates: str, subject: str, relation: Relation) -> tuple[int, ...]:
        """Which of the relation's templates are among those asked for."""
        withheld = (subject, relation.name) in self.withheld
        second = (1,) if withheld else ()
        choices = {"first": (0,), "trained": (0,) if withheld else (0, 1), "withheld": second}
        if templates not in choices:
            raise UserError(f"data.templates: got {templates!r}. Valid choices: {', '.join(choices)}")
        return choices[templates]

    def _fact(self, subject: str, relation: Relation, which: int) -> tuple[str, str, str, str, str, str]:
        """prompt, subject, attribute, template, relation, and what follows the filled template."""
        template, attribute = relation.templates[which], self.attributes[subject, relation.name]
        return template.format(subject), subject, attribute, template, relation.name, f" {attribute}"
