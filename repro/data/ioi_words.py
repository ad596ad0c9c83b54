"""Word lists of indirect-object prompts: the published ones, and the user's own from a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from repro.errors import UserError

# Source: Wang et al. 2022 (arXiv 2211.00593), published code. The order matters to seeded draws.
NAMES = tuple(
    """
    Michael Christopher Jessica Matthew Ashley Jennifer Joshua Amanda Daniel David James Robert John Joseph
    Andrew Ryan Brandon Jason Justin Sarah William Jonathan Stephanie Brian Nicole Nicholas Anthony Heather
    Eric Elizabeth Adam Megan Melissa Kevin Steven Thomas Timothy Christina Kyle Rachel Laura Lauren Amber
    Brittany Danielle Richard Kimberly Jeffrey Amy Crystal Michelle Tiffany Jeremy Benjamin Mark Emily Aaron
    Charles Rebecca Jacob Stephen Patrick Sean Erin Jamie Kelly Samantha Nathan Sara Dustin Paul Angela
    Tyler Scott Katherine Andrea Gregory Erica Mary Travis Lisa Kenneth Bryan Lindsey Kristen Jose Alexander
    Jesse Katie Lindsay Shannon Vanessa Courtney Christine Alicia Cody Allison Bradley Samuel
    """.split()
)
PLACES = ("store", "garden", "restaurant", "school", "hospital", "office", "house", "station")
OBJECTS = ("ring", "kiss", "bone", "basketball", "computer", "necklace", "drink", "snack")
# Five sentences; X is the name that is mentioned once more (adversarial prompts of the same paper).
SENTENCES = (
    "X had a good day.",
    "X was enjoying the situation.",
    "X was tired.",
    "X enjoyed being with a friend.",
    "X was an enthusiast person.",
)


@dataclass(frozen=True)
class Words:
    """What prompts are made of. Only names are always needed; the rest serve templates and flips.

    prefixes replace the text before the first name (place_prefix where that text holds the place);
    phrases replace "and" after the first subject, asides are inserted there; middles go before the
    punctuation that ends the first clause; sentences have an X for a name.
    """

    names: tuple[str, ...] = NAMES
    places: tuple[str, ...] = PLACES
    objects: tuple[str, ...] = OBJECTS
    # The lists from here on, but for the sentences, are our own.
    animals: tuple[str, ...] = (
        "dog", "cat", "horse", "bear", "wolf", "lion", "tiger", "bird", "fish", "rabbit", "mouse", "snake",
        "monkey", "sheep", "cow", "pig", "duck", "frog",
    )  # fmt: skip
    prefixes: tuple[str, ...] = (
        "Two friends met again. Afterwards,",
        "     Later on,",
        "          Some time after that,",
        "It had been a long and quiet week. Then,",
        "               In the evening,",
    )
    place_prefix: str = "A long time ago, the quiet [PLACE]"
    phrases: tuple[str, ...] = ("along with", "together with", "as well as", "in the company of")
    asides: tuple[str, ...] = (", after a long day,", ", without a plan,", ", happy as ever,")
    middles: tuple[str, ...] = ("on a sunny day", "early in the morning", "for the first time this year")
    sentences: tuple[str, ...] = SENTENCES
    templates: tuple[str, ...] | None = None  # the user's own, instead of a published family

    def __post_init__(self) -> None:
        for key in ("names", "places", "objects"):
            items = getattr(self, key)
            twice = sorted({item for item in items if items.count(item) > 1})
            if twice:
                raise UserError(f"{key}: every word once; got twice: {', '.join(twice)}. Remove the repeats")
        if len(self.names) < 5:
            raise UserError(
                f"names: at least 5 are needed (two in a prompt, three others in its ABC twin);"
                f" got {len(self.names)}. Add names to the list"
            )


PUBLISHED = Words()


def read_words(path: str | Path) -> Words:
    """Word lists from a JSON or YAML file; lists that it does not name are the published ones.

    Raises `UserError` for a missing or unreadable file, an unknown key, anything but lists of words.
    """
    path = Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except FileNotFoundError:
        raise UserError(f"data.words: no such file: {path.absolute()}. Give data.words=FILE.json") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, yaml.YAMLError) as error:
        raise UserError(f"data.words: cannot read {path.absolute()} as JSON or YAML: {error}") from None
    keys = [field.name for field in fields(Words)]
    if not isinstance(found, Mapping) or set(found) - set(keys):
        got = ", ".join(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
        raise UserError(f"data.words: {path}: expected some of the keys {', '.join(keys)}; got {got}")
    return replace(PUBLISHED, **{key: _checked(key, items, path) for key, items in found.items()})


def _checked(key: str, items: Any, path: Path) -> str | tuple[str, ...]:
    if key == "place_prefix":
        if isinstance(items, str) and "[PLACE]" in items:
            return items
        raise UserError(f"data.words: {path}: place_prefix is a text with [PLACE] in it; got {items!r}")
    if not isinstance(items, list) or not items or not all(isinstance(item, str) and item for item in items):
        raise UserError(
            f"data.words: {path}: {key}: expected a list of texts; got {items!r}. YAML words such as yes, no"
            " and on need quotes"
        )
    return tuple(items)
