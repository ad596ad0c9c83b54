"""Templates, draws and records of indirect-object prompts, against the published grammar written out."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from repro.data import ioi
from repro.data.ioi_prompts import PromptSet, draw, fill, from_records
from repro.data.ioi_templates import Template, choose, family, own
from repro.data.ioi_words import NAMES, OBJECTS, PLACES, PUBLISHED, Words, read_words
from repro.data.specs import Data, Ioi
from repro.errors import UserError

FAMILIES = ("standard", "long", "late", "early", "three_names")


def prompt(template: Template) -> str:
    return fill(template, "Mary", "John", "store", "ring", "Tom").text


def test_published_lists() -> None:
    assert (len(NAMES), len(set(NAMES)), len(PLACES), len(OBJECTS)) == (99, 99, 8, 8)
    assert NAMES[0] == "Michael" and NAMES[-1] == "Samuel" and NAMES[33] == "Kevin"


def test_templates_read_as_published() -> None:
    texts = [prompt(template) for template in family("standard")]
    assert texts[0] == "Then, John and Mary went to the store. John gave a ring to"
    assert texts[4] == "Then, John and Mary had a long argument, and afterwards John said to"
    assert texts[7] == "When John and Mary got a ring at the store, John decided to give the ring to"
    assert texts[12] == "Then, John and Mary had a long argument. Afterwards John said to"
    assert texts[13] == "The store John and Mary went to had a ring. John gave it to"
    assert len(set(texts)) == 15 and all(text.endswith(" to") for text in texts)


def test_the_other_order_swaps_the_first_clause_only() -> None:
    for template in family("standard"):
        here, there = prompt(template), prompt(template.in_order("ABBA"))
        assert there == here.replace("John and Mary", "Mary and John") != here
        assert template.in_order("ABBA").in_order("BABA") == template


@pytest.mark.parametrize(("name", "count"), list(zip(FAMILIES, (15, 15, 8, 8, 4), strict=True)))
def test_families(name: str, count: int) -> None:
    texts = [template.text for template in family(name)]
    assert len(texts) == count
    assert all(text.count("[S1]") == text.count("[S2]") == text.count("[IO]") == 1 for text in texts)
    assert all(text.count("[C]") == (2 if name == "three_names" else 0) for text in texts)


def test_longer_openers_keep_the_rest() -> None:
    for short, longer in zip(family("standard"), family("long"), strict=True):
        body = short.text.split("[S1]")[1]
        assert longer.text.endswith(body) and 2 <= len(longer.text.split()) - len(short.text.split()) <= 5


def test_mixed_means_seven_templates_in_both_orders() -> None:
    chosen = choose(family("standard"), "mixed", None, random.Random(3))
    assert len(chosen) == 14 and {template.number for template in chosen} == set(range(1, 8))
    assert sorted(template.order for template in chosen) == ["ABBA"] * 7 + ["BABA"] * 7
    assert chosen == choose(family("standard"), "mixed", None, random.Random(3))
    assert chosen != choose(family("standard"), "mixed", None, random.Random(4))


def test_numbers_of_templates() -> None:
    rng = random.Random(0)
    assert [t.number for t in choose(family("standard"), "ABBA", 3, rng)] == [1, 2, 3]
    assert len(choose(family("standard"), "BABA", None, rng)) == 15
    assert sorted(t.number for t in choose(family("standard"), "mixed", 4, rng)) == [1, 1, 2, 2]
    assert [t.number for t in choose(family("standard"), "BABA", [15, 9], rng)] == [9, 15]
    for order, which in (("BABA", 16), ("mixed", 32), ("BABA", [99]), ("BABA", [1, 16])):
        with pytest.raises(UserError, match="data.templates"):
            choose(family("standard"), order, which, rng)


def test_draws_are_distinct_names_and_seeded() -> None:
    templates = choose(family("standard"), "mixed", None, random.Random(0))
    made = draw(templates, PUBLISHED, 300, 5)
    assert made == draw(templates, PUBLISHED, 300, 5) and made != draw(templates, PUBLISHED, 300, 6)
    assert all(p.io != p.s1 == p.s2 == p.wrong and p.answer == p.final == p.io for p in made.prompts)
    assert {p.place for p in made.prompts} == set(PLACES) and len(made.groups) == 14
    assert sorted(i for rows in made.groups.values() for i in rows) == list(range(300))


def test_symmetric_draws_exchange_the_names() -> None:
    made = draw(family("standard"), PUBLISHED, 10, 0, symmetric=True).prompts
    for one, other in zip(made[::2], made[1::2], strict=True):
        assert (one.io, one.s1, one.template, one.place) == (other.s1, other.io, other.template, other.place)


def test_third_names_are_others() -> None:
    made = draw(family("three_names"), PUBLISHED, 50, 0).prompts
    assert all(p.c not in ("", p.io, p.s1) and p.text.count(p.c) >= 2 for p in made)


def test_records_rebuild_the_prompts_and_may_be_edited() -> None:
    made = draw(family("standard"), PUBLISHED, 20, 1)
    records = json.loads(json.dumps(made.records()))
    assert from_records(records, seed=1) == made
    records[0]["place"] = "office"
    assert "office" in from_records(records).texts[0] or "[PLACE]" not in made.prompts[0].template
    with pytest.raises(UserError, match="prompt record 0.*Valid keys"):
        from_records([{"text": "Then"}])


def test_features() -> None:
    made = PromptSet((fill(family("standard")[0].in_order("ABBA"), "Mary", "John"),))
    assert [made.feature(name) for name in ("first", "second", "order", "is_abc")] == [
        ["Mary"],
        ["John"],
        ["ABBA"],
        [False],
    ]
    with pytest.raises(UserError, match="Valid choices"):
        made.feature("colour")


@pytest.mark.parametrize(
    "text", ["no slots", "[S] and [IO] to", "[IO] [S] [IO] [S]", "[S] [S] [IO] went", "[S] [IO] [S] [THING]"]
)
def test_templates_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"template 1: expected \[S\] twice"):
        own([text])


def test_a_final_answer_in_a_template_is_left_out() -> None:
    assert own(["At [IO] and [S], [S] gave to [IO]"])[0].text == "At [S1] and [IO], [S2] gave to"


def test_own_lists(tmp_path: Path) -> None:
    file = tmp_path / "words.yaml"
    file.write_text(
        "names: [Ann, Bob, Cat, Dan, Eve, Fay]\ntemplates: ['Now [S] met [IO], and [S] sang to [IO]']\n"
    )
    data = ioi.load(Ioi(words=str(file), n=10, order="BABA"))
    assert {name for p in data.prompts.prompts for name in (p.io, p.s1)} <= set(
        "Ann Bob Cat Dan Eve Fay".split()
    )
    assert all(text.startswith("Now ") and text.endswith(" sang to") for text in data.prompts.texts)
    assert not data.is_published and read_words(file).places == PLACES
    before = Ioi(words=str(file)).fingerprint()
    file.write_text("names: [Ann, Bob, Cat, Dan, Eve, Gus]\n")
    assert Ioi(words=str(file)).fingerprint() != before and str(file) not in str(before)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("names: [a, b, c]", "at least 5"),
        ("names: [a, b, c, d, e, a]", "got twice: a"),
        ("people: [a]", "people"),
        ("names: Mary", "expected a list of texts"),
        ("names: [Mary, yes]", "need quotes"),
        ("- names", "got list"),
        ("names: [", "as JSON or YAML"),
        ("place_prefix: over there", "with \\[PLACE\\]"),
    ],
)
def test_bad_lists_are_refused(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "words.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match=says):
        read_words(file)


def test_missing_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_words(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"corruption": ["IO", "verb"]}, "Valid flips: IO, S"),
        ({"symmetric": True, "n": 3}, "data.n=4"),
        ({"templates": 3}, "data.templates=4"),
        ({"family": "short"}, "family"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Data.choose({"kind": "ioi", **change}, "data")


def test_loaded_data_says_what_it_is() -> None:
    data = ioi.load(Ioi(n=40))
    assert data.is_published and data.kind == "ioi" and "ABC" in data.source and "distinct" in data.source
    assert data.sha256 == ioi.load(Ioi(n=40)).sha256 != ioi.load(Ioi(n=40, seed=1)).sha256
    assert data.sha256 != ioi.load(Ioi(n=40, corruption=["IO"])).sha256


def test_reference_has_enough_of_every_template() -> None:
    data = ioi.load(Ioi(n=60))
    reference = data.reference(per_template=7)
    assert {text: len(rows) for text, rows in reference.groups.items()} == dict.fromkeys(
        data.prompts.groups, 7
    )
    assert all(p.is_abc for p in reference.prompts)


def test_words_without_enough_names() -> None:
    with pytest.raises(UserError, match="names: at least 5"):
        Words(names=("Ann", "Bob"))


def test_a_model_of_the_small_world_is_asked_in_its_own_words():
    """The same number, order, seed and flips; words and templates are those that the model was trained on."""
    from repro.data.specs import Data
    from repro.models.specs import Model

    task = {"kind": "ioi", "held_out_share": 0.3, "split_seed": 4}
    organism = Model.choose({"kind": "organism", "task": task, "context": 32}, "model")
    asked = Data.choose({"kind": "ioi", "n": 30, "seed": 7, "order": "BABA", "corruption": ["IO"]}, "data")
    toy = asked.for_model(organism)
    kept = toy.model_dump(
        include={"kind", "n", "seed", "order", "corruption", "held_out_share", "split_seed"}
    )
    assert kept == {
        "kind": "ioi_toy", "n": 30, "seed": 7, "order": "BABA", "corruption": ["IO"], "held_out_share": 0.3,
        "split_seed": 4,
    }  # fmt: skip
    other = Model.choose({"kind": "hf", "path": "gpt2"}, "model")
    assert asked.for_model(other) is asked and toy.for_model(organism) is toy
