"""Subjects among tokens: offsets against the released way, letters over several tokens, sets, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from repro.data.facts_records import Fact
from repro.data.facts_tokens import MORE_SETS, SETS, FactBatch, tokenise
from repro.errors import UserError
from tests.data.facts_tokenizers import byte_pairs, pieces

ASCII = [("Beats Music is owned by", "Beats Music"), ("The owner of Beats Music's shares is", "Beats Music"),
         ("In Rome, born in Rome was", "Rome")]  # fmt: skip
OTHERS = [
    ("Kyōto Prefecture lies in", "Kyōto Prefecture"),
    ("The poet Jágr lives in", "Jágr"),
    ("東京 is in", "東京"),
]


def facts(texts: list[tuple[str, str]], attribute: str | None = None) -> list[Fact]:
    return [Fact(i, f"line {i}", text, subject, attribute) for i, (text, subject) in enumerate(texts)]


def subject_of(found: FactBatch, row: int, tokenizer: Any) -> str:
    ids = found.batch.tokens[row, int(found.first[row]) : int(found.last[row]) + 1]
    return tokenizer.decode(ids.tolist()).strip()


def test_offsets_and_the_released_way_agree_on_ascii() -> None:
    tokenizer = byte_pairs()
    found, released = (tokenise(facts(ASCII), tokenizer, None, way) for way in ("offsets", "released"))
    assert torch.equal(found.first, released.first) and torch.equal(found.last, released.last)
    assert [subject_of(found, i, tokenizer) for i in range(3)] == ["Beats Music", "Beats Music", "Rome"]
    assert found.subject_first.tolist() == [True, False, False]
    assert found.end.tolist() == [len(tokenizer(text)["input_ids"]) - 1 for text, _ in ASCII]
    assert found.first[2] == len(tokenizer("In ")["input_ids"]), "the first of two places"


@pytest.mark.parametrize("text, subject", OTHERS)
def test_letters_over_several_tokens_are_found_by_offsets_alone(text: str, subject: str) -> None:
    tokenizer = byte_pairs()
    assert len(tokenizer("ō")["input_ids"]) == 2
    found = tokenise(facts([(text, subject)]), tokenizer, None, "offsets")
    assert subject_of(found, 0, tokenizer) == subject
    with pytest.raises(UserError, match="data.ranges=offsets"):
        tokenise(facts([(text, subject)]), tokenizer, None, "released")


@pytest.mark.parametrize("text, subject", [*ASCII, OTHERS[0], OTHERS[1]])
def test_tokenizers_with_a_start_token_and_marks_for_blanks(text: str, subject: str) -> None:
    tokenizer = pieces()
    found = tokenise(facts([(text, subject)]), tokenizer, None, "offsets")
    assert int(found.start) == 1 and int(found.batch.tokens[0, 0]) == tokenizer.bos_token_id
    assert subject_of(found, 0, tokenizer).split("'")[0].rstrip(",") == subject, "marks may be merged"
    without = tokenise(facts([(text, subject)]), tokenizer, False, "offsets")
    assert int(without.start) == 0 and torch.equal(without.first + 1, found.first)
    assert torch.equal(without.subject_first, found.subject_first)


def test_a_start_token_is_put_before_texts_where_it_is_asked_for() -> None:
    tokenizer = byte_pairs()
    without, found = (tokenise(facts(ASCII), tokenizer, bos, "offsets") for bos in (None, True))
    assert (found.batch.tokens[:, 0] == tokenizer.bos_token_id).all() and (found.start == 1).all()
    assert torch.equal(found.first, without.first + 1) and torch.equal(
        found.subject_first, without.subject_first
    )


def test_sets_of_positions() -> None:
    made = [Fact(0, "a", tokens=(5, 6, 7, 8, 9), span=(1, 3)), Fact(1, "b", tokens=(5, 6), span=(0, 1))]
    found = tokenise(made, None, True, "offsets")
    expected = {
        "subject": [[1, 2], [0]], "non_subject": [[0, 3], []], "last": [[4], [1]],
        "first_subject": [[1], [0]], "last_subject": [[2], [0]], "relation": [[3], []],
        "non_subject_and_last": [[0, 3, 4], [1]],
        "all": [[0, 1, 2, 3, 4], [0, 1]], "none": [[], []],
    }  # fmt: skip
    assert set(expected) == {*SETS, *MORE_SETS}
    for name, rows in expected.items():
        assert [row.nonzero().flatten().tolist() for row in found.positions(name)] == rows, name
    with pytest.raises(UserError, match="Valid choices: subject, non_subject"):
        found.positions("verb")
    one = found.rows([1]).narrow()
    assert one.batch.tokens.tolist() == [[5, 6]] and one.number.tolist() == [1] and one.facts == (made[1],)


def test_answers_that_begin_the_attribute() -> None:
    tokenizer = byte_pairs()
    found = tokenise(facts(ASCII[:1], "Apple"), tokenizer, None, "offsets")
    text = ASCII[0][0]
    after = tokenizer(f"{text} Apple")["input_ids"][len(tokenizer(text)["input_ids"]) :]
    assert found.attribute.tolist() == after[:1]
    assert found.agrees(torch.tensor(after[:1]), tokenizer) == [True]
    for other in (" Sony", "Apple"):  # without a blank it would go on with the last word
        wrong = tokenizer(other)["input_ids"][0]
        assert found.agrees(torch.tensor([wrong]), tokenizer) == [False]
    assert found.agrees(torch.tensor(after[:1]), None) == [None]
    nothing = tokenise(facts(ASCII[:1]), tokenizer, None, "offsets")
    assert nothing.attribute.tolist() == [-1] and nothing.agrees(torch.tensor(after[:1]), tokenizer) == [None]


def test_refusals() -> None:
    tokenizer = byte_pairs()
    ids = tokenizer("Beats Music is")["input_ids"]
    given: list[tuple[Fact, Any, str]] = [
        (Fact(0, "line 4", "I like Beats", "Beats"), tokenizer, "line 4: the subject reaches the last token"),
        (Fact(0, "line 4", tokens=(5, 6), span=(1, 2)), None, "line 4: the subject reaches the last token"),
        (Fact(0, "line 4", "Beats is", "Beats"), None, "line 4: texts need a tokenizer"),
        (Fact(0, "line 4", "Beats is", "Beats"), object(), "fast tokenizer"),
        (Fact(0, "line 4", "Beats Music is", tokens=(5, *ids[1:]), span=(0, 1)), tokenizer, "disagree"),
    ]
    for fact, used, said in given:
        with pytest.raises(UserError, match=said):
            tokenise([fact], used, None, "offsets")
    right = Fact(0, "line 4", "Beats Music is", tokens=tuple(ids), span=(0, 1))
    found = tokenise([right], tokenizer, None, "offsets")
    with pytest.raises(UserError, match=r"line 4: token ids must lie between 0 and 5"):
        found.check_vocabulary(6)
