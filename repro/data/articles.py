"""Short made-up articles, for models that are trained here: a text of our own, under this project's licence.

Every article is about one thing (a river, a battle, a novel): it has a subject, people, places, years
and numbers that no other has, and its own preference among the words of its domain and among the
sentences. So a passage says most about the next one of its own article, less about its domain, and
something about the language, as in an encyclopedia.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from repro.data.lm_tasks import generator

# Domain -> nouns, verbs (past), adjectives.
_DOMAINS = {
    "river": (
        "river valley bridge bank delta mill harbour stream lake dam ferry canal",
        "crossed flooded fed carved reached joined left divided",
        "wide muddy shallow northern slow deep cold winding",
    ),
    "bird": (
        "bird nest feather egg beak flock chick song plumage forest wing colony",
        "hunted fed migrated sang bred glided nested returned",
        "small dark spotted crested rare common pale noisy",
    ),
    "battle": (
        "army siege fortress cavalry general soldier cannon camp trench flank regiment retreat",
        "attacked defended surrounded withdrew advanced fired fell surrendered",
        "fierce heavy wounded armed royal eastern bloody final",
    ),
    "singer": (
        "album song single chart guitar tour band studio lyric melody stage record",
        "recorded released performed toured sold reached produced sang",
        "popular slow acoustic live debut second bright famous",
    ),
    "ship": (
        "ship deck hull captain crew engine sail cargo gun anchor mast fleet",
        "sailed sank carried docked steamed escorted collided returned",
        "armoured fast iron heavy damaged merchant new stern",
    ),
    "temple": (
        "temple tower wall shrine pillar roof gate altar statue courtyard dome relief",
        "stood collapsed impressed surrounded burned shone faced survived",
        "ancient golden ruined sacred stone ornate square central",
    ),
    "storm": (
        "storm wind coast warning cloud wave pressure eye rainfall island shelter landfall",
        "intensified weakened struck moved formed dissipated peaked turned",
        "tropical severe strong warm minor moist rapid intense",
    ),
    "player": (
        "season goal match team league coach club injury pass trophy defence stadium",
        "scored played signed won lost trained joined defeated",
        "young professional regular defensive national brilliant injured late",
    ),
    "mineral": (
        "crystal mine vein ore rock deposit lattice sample hardness cleavage grain powder",
        "formed occurred melted dissolved fractured glowed grew weathered",
        "brittle green rare massive transparent hydrous brown fibrous",
    ),
    "novel": (
        "novel chapter hero author plot reader critic manuscript publisher sequel letter dialogue",
        "published wrote praised described translated reviewed died married",
        "tragic comic gothic early unfinished sentimental moral long",
    ),
    "railway": (
        "railway station line train platform tunnel track locomotive signal carriage junction timetable",
        "opened closed ran stopped connected extended operated arrived",
        "narrow double urban steam electric disused daily express",
    ),
    "fungus": (
        "fungus cap stem gill spore flesh ring wood odour root species mould",
        "grew fruited decayed smelled appeared hardened spread vanished",
        "edible poisonous sticky white brownish bitter slimy dry",
    ),
}
# n, v, a: nouns, verbs and adjectives of the article; X its subject, H and S people, by full name and by
# surname, P a place, y a year, d a number.
_SENTENCES = (
    "The {a} {n} of {X} {v} near {P} in {y} .",
    "In {y} , {H} {v} with the {n} and the {n} of {X} .",
    "{X} , known for its {a} {n} , {v} before the {n} .",
    "It was {H} who {v} at {P} , beside the {a} {n} .",
    "According to {S} , the {n} {v} between {P} and {P} .",
    "{H} and {H} {v} at the {n} of {P} for {d} years .",
    "The {n} , {a} and {a} , {v} when {X} {v} .",
    "After {y} , the {n} near {P} {v} and {S} {v} .",
    "{X} had {d} of the {a} {n} , which {v} in the {n} .",
    "A {a} {n} {v} ; {H} wrote that the {n} of {X} {v} .",
    "Most of the {n} was {a} , but {X} {v} until {y} .",
    "Because the {n} {v} , {S} moved the {n} to {P} .",
    "Although {S} {v} , the {a} {n} {v} in {y} .",
    "Some {d} of the {n} {v} under {S} , and others {v} at {P} .",
    "{S} met {H} at {P} in {y} and {v} .",
    "From {P} to {P} , {S} {v} with {S} .",
)
# Coined terms of a domain beside its words: nouns, verbs and adjectives, with their endings.
TERMS = ((40, ""), (20, "ed"), (20, "ish"))
PEOPLE, PLACES, YEARS, NUMBERS = 3, 3, 4, 3  # that an article has
PARAGRAPHS, SENTENCES = (3, 12), (3, 8)  # from, up to but not including
_ONSETS = "b br c ch d dr f g gr h k kr l m n p pr r s sh st t tr v w z".split()
_VOWELS = "a e i o u ai ea ou".split()
_ENDS = ["", "n", "r", "l", "s", "m", "th", "nd", "rk", "x"]


@dataclass(frozen=True)
class Article:
    """title, and paragraphs of a few sentences. domain: what kind of thing it is about."""

    domain: str
    title: str
    paragraphs: tuple[str, ...]

    @property
    def rows(self) -> list[str]:
        """Its lines: the title between equal signs, then its paragraphs."""
        return [f" = {self.title} = \n", *(f" {paragraph} \n" for paragraph in self.paragraphs)]


def articles(stream: str, seed: int, words: int) -> list[Article]:
    """So many articles that they have at least `words` words.

    stream: names a source; two sources, or two seeds, share domains and sentences, and no article.
    """
    found: list[Article] = []
    while words > 0:
        found.append(_article(generator(f"articles/{stream}", seed, len(found))))
        words -= sum(len(row.split()) for row in found[-1].rows)
    return found


def _article(random: np.random.Generator) -> Article:
    domain = list(_DOMAINS)[random.integers(len(_DOMAINS))]
    nouns, verbs, adjectives = (
        _Taste(random, [*words.split(), *coined])
        for words, coined in zip(_DOMAINS[domain], _terms(domain), strict=True)
    )
    sentences = _Taste(random, _SENTENCES)
    subject = _name(random)
    title = f"{subject} {nouns.items[0].capitalize()}"
    surnames = [_name(random) for _ in range(PEOPLE)]
    people = [f"{_name(random)} {surname}" for surname in surnames]
    begins = int(random.integers(1500, 2000))
    said = {
        "n": nouns, "v": verbs, "a": adjectives,
        "X": _Taste(random, [subject, title]),
        "H": _Taste(random, people),
        "S": _Taste(random, surnames),
        "P": _Taste(random, [_name(random) for _ in range(PLACES)]),
        "y": _Taste(random, [str(begins + int(year)) for year in random.integers(0, 40, YEARS)]),
        "d": _Taste(random, [str(number) for number in random.integers(2, 99, NUMBERS)]),
    }  # fmt: skip
    paragraphs = tuple(
        " ".join(_sentence(random, sentences.draw(random), said) for _ in range(random.integers(*SENTENCES)))
        for _ in range(random.integers(*PARAGRAPHS))
    )
    return Article(domain, title, paragraphs)


@functools.cache
def _terms(domain: str) -> list[list[str]]:
    """Coined words of a domain: the same in all articles about it."""
    random = generator("articles/terms", list(_DOMAINS).index(domain))
    return [[_name(random).lower() + ending for _ in range(count)] for count, ending in TERMS]


class _Taste:
    """Items in an order of the article's own, each drawn with a probability that falls with its rank."""

    def __init__(self, random: np.random.Generator, items: Sequence[str]) -> None:
        self.items: list[str] = [str(items[index]) for index in random.permutation(len(items))]
        weights = 1.0 / np.arange(1, len(items) + 1)
        self._weights = weights / weights.sum()

    def draw(self, random: np.random.Generator) -> str:
        return self.items[random.choice(len(self.items), p=self._weights)]


def _sentence(random: np.random.Generator, template: str, said: Mapping[str, _Taste]) -> str:
    """Every place of the template filled with a draw of its own."""
    return re.sub(r"{(\w)}", lambda place: said[place[1]].draw(random), template)


def _name(random: np.random.Generator) -> str:
    """Two or three syllables."""
    parts = (_ONSETS, _VOWELS, _ENDS)
    syllables = (
        "".join(part[random.integers(len(part))] for part in parts) for _ in range(random.integers(2, 4))
    )
    return "".join(syllables).capitalize()
