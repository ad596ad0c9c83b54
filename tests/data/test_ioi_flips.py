"""Each flip changes what it says, and nothing else."""

from __future__ import annotations

import pytest

from repro.data.ioi_adversarial import adversarial
from repro.data.ioi_flips import corrupt, flip
from repro.data.ioi_prompts import PromptSet, draw, fill
from repro.data.ioi_samplers import CONDITIONS, like
from repro.data.ioi_templates import family
from repro.data.ioi_words import PUBLISHED, SENTENCES
from repro.data.text_specs import FLIPS
from repro.errors import UserError

BOTH = [each.in_order(order) for order in ("BABA", "ABBA") for each in family("standard")]
PROMPTS = draw(BOTH, PUBLISHED, 200, 0)
ONE = fill(BOTH[0], "Mary", "John", "store", "ring")
# What each flip of words may change; everything else must stay.
MAY_CHANGE = {
    "IO": {"io", "answer", "final"},
    "S": {"s1", "s2", "wrong"},
    "S1": {"s1"},
    "S2": {"s2"},
    "S2:IO": {"s2", "answer", "wrong", "final"},
    "exchange": {"io", "s1"},
    "final": {"final"},
    "IO:animal": {"io", "answer", "final"},
    "S:animal": {"s1", "s2", "wrong"},
    "ABC": {"io", "s1", "s2", "answer", "wrong", "final"},
}


def flipped_one(name: str, order: str = "BABA") -> str:
    return flip(PromptSet((fill(BOTH[0].in_order(order), "Mary", "John", "store", "ring"),)), name).texts[0]


@pytest.mark.parametrize("name", FLIPS)
def test_only_the_named_part_changes(name: str) -> None:
    for old, new in zip(PROMPTS.prompts, flip(PROMPTS, name).prompts, strict=True):
        changed = {key for key, value in vars(old).items() if vars(new)[key] != value}
        assert changed == MAY_CHANGE.get(name, {"template"})


@pytest.mark.parametrize("name", FLIPS)
def test_flips_are_seeded(name: str) -> None:
    assert flip(PROMPTS, name) == flip(PROMPTS, name)
    if name in ("IO", "S", "S1", "S2", "ABC", "S+1", "middle", "IO:animal"):
        assert flip(PROMPTS, name) != flip(PROMPTS, name, seed=1)
    assert flip(PROMPTS, name).history == (name,)


def test_random_names_are_new() -> None:
    for name in ("IO", "S", "S1", "S2", "ABC"):
        for old, new in zip(PROMPTS.prompts, flip(PROMPTS, name).prompts, strict=True):
            fresh = {vars(new)[key] for key in MAY_CHANGE[name]}
            assert not fresh & {old.io, old.s1}
            assert new.io not in (new.s1, new.s2)


def test_abc_has_three_names_and_the_released_one_sometimes_not() -> None:
    many = draw(BOTH, PUBLISHED, 3000, 1)
    assert all(p.is_abc for p in flip(many, "ABC").prompts)
    repeated = sum(not p.is_abc for p in flip(many, "ABC", released=True).prompts) / len(many)
    # Chance that S2 or S1 hits another of the three: about 3/99.
    assert 0.018 < repeated < 0.045


def test_texts_of_flips() -> None:
    assert flipped_one("order") == "Then, Mary and John went to the store. John gave a ring to"
    assert flipped_one("exchange") == flipped_one("order")
    assert flipped_one("S2:IO") == "Then, John and Mary went to the store. Mary gave a ring to"
    assert flipped_one("punctuation") == "Then, John and Mary went to the store John gave a ring to"
    body = " John and Mary went to the store. John gave a ring to"
    assert flipped_one("prefix").endswith(body) and not flipped_one("prefix").startswith("Then, John")
    assert flipped_one("S+1") in [
        f"Then, John {phrase} Mary went to the store. John gave a ring to" for phrase in PUBLISHED.phrases
    ]
    assert flipped_one("S+1", "ABBA") in [
        f"Then, Mary and John{aside} went to the store. John gave a ring to" for aside in PUBLISHED.asides
    ]
    assert flipped_one("middle") in [
        f"Then, John and Mary went to the store {middle}. John gave a ring to" for middle in PUBLISHED.middles
    ]


def test_a_prefix_keeps_a_place_that_stands_in_the_opener() -> None:
    old = fill(family("standard")[13], "Mary", "John", "store", "ring")
    text = flip(PromptSet((old,)), "prefix").texts[0]
    assert text == "A long time ago, the quiet store John and Mary went to had a ring. John gave it to"


def test_order_is_its_own_inverse() -> None:
    assert corrupt(PROMPTS, ["order", "order"]).prompts == PROMPTS.prompts
    assert corrupt(PROMPTS, ["S2:IO", "order"]).texts != PROMPTS.texts
    assert corrupt(PROMPTS, []) == PROMPTS


def test_unknown_flips_are_refused() -> None:
    with pytest.raises(UserError, match="Valid choices: IO, S"):
        flip(PROMPTS, "verb")


@pytest.mark.parametrize(("about", "name"), [("IO", "Mary"), ("S", "John")])
def test_adversarial_sentences(about: str, name: str) -> None:
    made = adversarial(PromptSet((ONE,) * 400), about)
    middles = {text.split("store. ")[1].split(" John gave")[0] for text in made.texts}
    every = [sentence.replace("X", name) for sentence in SENTENCES]
    assert middles == {f"{one} {two}" for one in every for two in every}  # all 25 ordered pairs
    assert made.prompts[0].answer == "Mary"
    with pytest.raises(UserError, match="Valid choices: IO, S"):
        adversarial(PROMPTS, "END")


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("abc", [False, True])
def test_samplers_keep_their_condition(condition: str, abc: bool) -> None:
    source = flip(PROMPTS, "ABC") if abc else PROMPTS
    kept = {
        "first": ("first",), "second": ("second",), "third": ("s2",), "IO": ("io",),
        "IO+order": ("io", "order"), "names": ("io", "s1", "s2", "order"), "any": (),
    }[condition]  # fmt: skip
    made = like(source, condition, 3)
    for old, new in zip(source.prompts, made.prompts, strict=True):
        assert all(getattr(old, key) == getattr(new, key) for key in kept)
        assert new.is_abc == abc and old.number == new.number and new.io != new.s1
        assert abc or new.s1 == new.s2
    free = (
        {"first", "second", "s2", "io", "order"} - set(kept) if condition != "names" else {"place", "object"}
    )
    assert all(source.feature(key) != made.feature(key) for key in free)


def test_samplers_may_change_the_family() -> None:
    made = like(PROMPTS, "first", 0, change_family=True).prompts
    assert 60 < sum(p.is_abc for p in made) < 140
    assert [p.first for p in made] == PROMPTS.feature("first")
