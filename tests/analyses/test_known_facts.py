"""Making a set of known facts: rules by hand, interruptions, and that the set can be loaded and asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from analyses.fact_worlds import untrained

from repro import stopping
from repro.analyses import known_facts
from repro.analyses.fact_inputs import ask
from repro.analyses.flow_specs import KnownFacts
from repro.data.fact_specs import CounterFact, FactsToy, Known1000
from repro.data.facts import FactData, load
from repro.data.facts_records import Fact
from repro.errors import UserError
from repro.models.language_model import LanguageModel


def asking(model: LanguageModel, count: int = 12, repeat: int = 0) -> FactData:
    """Facts of the world whose attributes are what this model says first, second and third, or never."""
    facts = load(FactsToy(subjects=50, n=count)).facts
    said = known_facts._continued(model, facts, None, 3)
    made = []
    for i, (fact, text) in enumerate(zip(facts, said, strict=True)):
        words = text.split()
        attribute = "nothing" if i % 4 == 3 else words[i % 4 % len(words)]
        template = (fact.prompt or "").replace(fact.subject or "", "{}")
        made.append(Fact(100 + i, fact.where, fact.prompt, fact.subject, attribute, template, fact.relation))
    again = tuple(made[:repeat])
    return FactData(FactsToy(), (*made, *again), "made", "0")


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return untrained("gpt2")


def test_what_is_kept_is_said_next_by_the_model(model: LanguageModel, tmp_path: Path) -> None:
    data = asking(model)
    result = known_facts.run(model, data, None, tmp_path, KnownFacts(tokens=3, per_relation=None))
    records = [json.loads(line) for line in (tmp_path / known_facts.SET).read_text().splitlines()]
    assert len(records) == result.scalars["kept"] > 0 and not (tmp_path / known_facts.FOUND).exists()
    counts = [result.scalars[f"left_out.{reason}"] for reason in known_facts.REASONS]
    assert sum(counts) + result.scalars["kept"] == result.scalars["asked"] == 12
    assert result.scalars["left_out.absent"] >= 3, "every fourth is never said"
    set_ = load(Known1000(path=str(tmp_path / known_facts.SET), keep="known"))
    asked = ask(model, set_)
    assert len(asked) == len(records), "the model answers every one with the attribute"
    np.testing.assert_allclose(asked.base, [one["probability"] for one in records], rtol=1e-9)
    for one in records:
        filled = one["template"].replace("{}", one["subject"])
        inserted = one["prediction"][: one["prediction"].find(one["attribute"])]
        assert one["prompt"] == (filled + inserted).rstrip()
        assert one["decoding"] == "greedy, 3 tokens" and one["case_id"] >= 100


def test_decoding_takes_the_likeliest_token_again_and_again(model: LanguageModel) -> None:
    facts = load(FactsToy(subjects=50, n=3)).facts
    said = known_facts._continued(model, facts, None, 3)
    for fact, text in zip(facts, said, strict=True):
        ids = model.tokenizer(fact.prompt)["input_ids"]
        with torch.no_grad():
            for _ in range(3):
                ids.append(int(model.hf(torch.tensor([ids])).logits[0, -1].argmax()))
        assert text == model.tokenizer.decode(ids)[len(model.tokenizer.decode(ids[:-3])) :]


def test_words_before_the_attribute() -> None:
    """The published rule: the first occurrence, and no capitalised word before it."""
    assert known_facts._inserted(" a mixture of Apple and", "Apple") == {"inserted": " a mixture of "}
    assert known_facts._inserted(" Apple", "Apple") == {"inserted": " "}
    assert known_facts._inserted(" Sony and Apple", "Apple") == {"left_out": "capitalised"}
    assert known_facts._inserted(" the Ōsaka of Kyoto", "Kyoto") == {"left_out": "capitalised"}
    assert known_facts._inserted(" the 3rd Apple", "Apple") == {"inserted": " the 3rd "}
    assert known_facts._inserted(" the company", "Apple") == {"left_out": "absent"}


def test_duplicates_caps_and_the_sample(model: LanguageModel, tmp_path: Path) -> None:
    data = asking(model, repeat=6)
    plain = known_facts.run(model, data, None, None, KnownFacts(tokens=3, per_relation=None))
    once = known_facts.run(model, asking(model), None, None, KnownFacts(tokens=3, per_relation=None))
    assert plain.scalars["kept"] == once.scalars["kept"]
    assert plain.scalars["left_out.duplicate"] == plain.scalars["known"] - once.scalars["known"] > 0
    capped = known_facts.run(model, data, None, None, KnownFacts(tokens=3, per_relation=1))
    relations = {fact.relation for fact in data.facts}
    assert capped.scalars["kept"] <= len(relations) and capped.scalars["left_out.relation_full"] > 0
    few = [
        known_facts.run(model, data, None, None, KnownFacts(tokens=3, most=2, seed=s)) for s in (0, 0, 1, 2)
    ]
    cases = [one.arrays["case"].values.tolist() for one in few]
    assert cases[0] == cases[1] and all(len(case) == 2 and case == sorted(case) for case in cases)
    assert len({tuple(case) for case in cases}) > 1


def test_an_interrupted_search_goes_on_and_ends_the_same(
    model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, spec = asking(model), KnownFacts(tokens=3, batch=4)
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    known_facts.run(model, data, None, tmp_path / "whole", spec)
    asked: list[range] = []
    ask_batch = known_facts._ask

    def noted(model: Any, facts: Any, places: range, *rest: Any) -> Any:
        asked.append(places)
        if len(asked) == 2:
            stopping.ask("stop")
        return ask_batch(model, facts, places, *rest)

    monkeypatch.setattr(known_facts, "_ask", noted)
    try:
        with pytest.raises(stopping.Stopped):
            known_facts.run(model, data, None, tmp_path / "parts", spec)
    finally:
        stopping.forget()
    with (tmp_path / "parts" / known_facts.FOUND).open("a") as stream:
        stream.write('{"place": 8, "predic')  # killed while it wrote
    known_facts.run(model, data, None, tmp_path / "parts", spec)
    assert [(one.start, one.stop) for one in asked] == [(0, 4), (4, 8), (8, 12)]
    whole, parts = ((tmp_path / name / known_facts.SET).read_bytes() for name in ("whole", "parts"))
    assert whole == parts


def test_what_cannot_be_asked_is_refused(model: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data=counterfact"):
        known_facts.run(model, object(), None, None, KnownFacts())
    bare = FactData(FactsToy(), (Fact(0, "line 1", "a b c", "a"),), "", "")
    with pytest.raises(UserError, match="line 1: a template and an attribute are needed"):
        known_facts.run(model, bare, None, None, KnownFacts())
    never = FactData(FactsToy(), tuple(
        Fact(f.number, f.where, f.prompt, f.subject, "nothing", f.template) for f in asking(model).facts
    ), "", "")  # fmt: skip
    with pytest.raises(UserError, match=r"of 12 facts the model knows none \(absent 12\)"):
        known_facts.run(model, never, None, None, KnownFacts(tokens=2))


def test_costs_count_a_pass_for_every_token() -> None:
    class Shape:
        layers = 2

    cost = KnownFacts(tokens=10).cost(Shape(), CounterFact(path="x", n=100))
    assert cost.works[0].sequences == 100 and cost.works[0].forwards == 11
