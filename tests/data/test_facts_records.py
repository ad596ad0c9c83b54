"""Records of facts: read from lists and lines, refused with the line, checked by content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from repro.data import facts_records as records
from repro.errors import UserError

RECORD = {
    "known_id": 1, "subject": "Beats Music", "attribute": "Apple", "template": "{} is owned by",
    "prediction": " Apple, which", "prompt": "Beats Music is owned by", "relation_id": "P127",
}  # fmt: skip
OTHER = {**RECORD, "known_id": 0, "subject": "Jágr", "prompt": "Jágr is owned by"}
WHOLE = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "The owner of {} is", "relation_id": "P127", "subject": "Beats Music",
        "target_new": {"str": "Sony"}, "target_true": {"str": "Apple"},
    },
}  # fmt: skip


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "records.json"
    path.write_text(text, encoding="utf-8")
    return path


def refused(tmp_path: Path, text: str, parse: Any = records.known) -> str:
    with pytest.raises(UserError) as error:
        records.read(written(tmp_path, text), parse)
    return str(error.value)


@pytest.mark.parametrize("text", [
    json.dumps([RECORD, OTHER]), json.dumps([RECORD, OTHER], indent=2),
    f"{json.dumps(RECORD)}\n{json.dumps(OTHER, ensure_ascii=False)}\n",
    f"\ufeff\n{json.dumps(RECORD)}\n\n{json.dumps(OTHER)}",
])  # fmt: skip
def test_lists_and_lines_hold_the_same(tmp_path: Path, text: str) -> None:
    first, second = records.read(written(tmp_path, text), records.known)
    assert (first.number, first.subject, first.relation) == (1, "Beats Music", "P127")
    assert second.prompt == "Jágr is owned by" and second.characters == (0, 4)


def test_the_content_is_the_same_in_any_layout_and_order(tmp_path: Path) -> None:
    def content(items: list[dict[str, Any]]) -> str:
        return records.content_sha256(records.read(written(tmp_path, json.dumps(items)), records.known))

    assert content([RECORD, OTHER]) == content([{**OTHER, "flag": True}, RECORD])
    assert content([RECORD, OTHER]) != content([RECORD, {**OTHER, "attribute": "Sony"}])


def test_the_line_of_a_fault_is_named(tmp_path: Path) -> None:
    lacking = {key: value for key, value in RECORD.items() if key != "relation_id"}
    assert "line 2: expected the fields" in refused(
        tmp_path, f"{json.dumps(RECORD)}\n{json.dumps(lacking)}\n"
    )
    assert "missing: relation_id" in refused(tmp_path, json.dumps([lacking]))
    indented = json.dumps([RECORD, lacking], indent=1)
    assert f"line {indented.splitlines().index(' {', 2) + 1}: expected" in refused(tmp_path, indented)
    assert "line 3: no JSON" in refused(tmp_path, f"{json.dumps(RECORD)}\n\n{{broken")
    assert "line 1: subject: expected text" in refused(tmp_path, json.dumps({**RECORD, "subject": ""}))
    assert "template: expected text with one {}" in refused(tmp_path, json.dumps({**RECORD, "template": "x"}))
    assert "known_id: expected an integer" in refused(tmp_path, json.dumps({**RECORD, "known_id": "1"}))
    wrong = json.dumps({**RECORD, "subject": "beats music"})
    assert "the subject 'beats music' is not in the prompt" in refused(tmp_path, wrong)
    assert "expected an object" in refused(tmp_path, "[1]")
    assert "not closed" in refused(tmp_path, "[" + json.dumps(RECORD))
    assert "at least one record" in refused(tmp_path, "[]")


def test_counterfact_gives_the_true_fact_whole_or_flattened(tmp_path: Path) -> None:
    flat = {"case_id": 8, "prompt": "Beats Music, by", "subject": "Beats Music", "ground_truth": "Apple",
            "target_new": "Sony"}  # fmt: skip
    one, two = records.read(written(tmp_path, json.dumps([WHOLE, flat])), records.counterfact)
    assert (one.number, one.prompt, one.attribute) == (7, "The owner of Beats Music is", "Apple")
    assert (one.template, one.relation) == ("The owner of {} is", "P127")
    assert (two.number, two.template, two.relation) == (8, "{}, by", None)
    broken = {"case_id": 1, "requested_rewrite": {"subject": "x"}}
    assert "requested_rewrite: expected" in refused(tmp_path, json.dumps([broken]), records.counterfact)


@pytest.mark.parametrize(
    ("subject", "text", "begin"),
    [
        ("Al", "Alan was told that Al is", 19),
        ("Al", "Pascal, Al's cat, and Al", 8),
        ("Al", "Alan is", 0),  # nowhere on its own: the first place
        ("C++", "C++ and C++11", 0),
        ("\u6771\u4eac", "\u5927\u6771\u4eac\u306f", 1),
        ("Al", "Al", 0),
    ],
)
def test_a_subject_is_looked_for_as_a_word_of_its_own(subject: str, text: str, begin: int) -> None:
    assert records.beginning(subject, text) == begin
    assert records.Fact(0, "", text, subject).characters == (begin, begin + len(subject))


def test_own_prompts_are_texts_or_tokens(tmp_path: Path) -> None:
    lines = [{"prompt": "Beats Music is", "subject": "Beats Music"}, {"tokens": [5, 3, 9], "subject": [0, 2]}]
    text = "\n".join(map(json.dumps, lines))
    one, two = records.read(written(tmp_path, text), records.own)
    assert one.prompt == "Beats Music is" and one.attribute is None
    assert two.tokens == (5, 3, 9) and two.span == (0, 2) and two.number == 1
    for given, said in (
        ({"tokens": [5, 3], "subject": [0, 3]}, "0 <= start < end <= 2"),
        ({"tokens": [5, 3], "subject": [1, 1]}, "end excluded"),
        ({"tokens": [], "subject": [0, 1]}, "tokens: expected a list"),
        ({"tokens": [5, -1], "subject": [0, 1]}, "tokens: expected a list"),
        ({"tokens": [5, 3]}, "subject: expected"),
        ({"prompt": "Beats"}, "missing: subject"),
        ({"prompt": "Beats is", "subject": "Music"}, "is not in the prompt"),
    ):
        assert said in refused(tmp_path, json.dumps(given), records.own)
