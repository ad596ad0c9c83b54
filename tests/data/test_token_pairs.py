"""The user's own token ids: what is read, and what is refused with the key and the row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from repro.data.specs import Data, TokenPairs, sha256_of
from repro.data.token_pairs import PromptPairs, from_mapping, load
from repro.errors import UserError

GOOD: dict[str, Any] = {
    "clean": [[5, 3, 4, 9], [5, 3, 2, 9]],
    "corrupt": [[5, 6, 4, 9], [5, 6, 2, 9]],
    "answer": [3, 2],
    "wrong": [4, 3],
    "positions": {"END": 3, "S2": [1, 2]},
}


def pairs(**change: Any) -> PromptPairs:
    return from_mapping({**GOOD, **change}, "pairs.json", "0" * 64)


def test_a_file_is_read_as_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "pairs.json"
    file.write_text(json.dumps(GOOD))
    spec = Data.choose({"kind": "token_pairs", "path": str(file)}, "data")
    assert isinstance(spec, TokenPairs)
    made = load(spec)
    assert made.clean.tokens.tolist() == GOOD["clean"] and made.corrupt.tokens.tolist() == GOOD["corrupt"]
    assert made.answer.tolist() == [3, 2] and made.wrong.tolist() == [4, 3]
    assert made.position("END").tolist() == [3, 3] and made.position("S2").tolist() == [1, 2]
    assert made.sha256 == sha256_of(file) == spec.fingerprint()["sha256"] and not made.is_published
    assert "path" not in spec.fingerprint() and made.pairs(None) is made and made.kind == "token_pairs"
    made.require_aligned()
    assert made.column("END") == 3
    with pytest.raises(UserError, match=r"position S2.*columns \[1, 2\]"):
        made.column("S2")
    with pytest.raises(UserError, match="This data has: END, S2"):
        made.position("IO")


def test_prompts_may_differ_in_length_twins_may_not() -> None:
    made = pairs(clean=[[5, 3], [5, 3, 2]], corrupt=[[5, 6], [5, 6, 2]], positions={"END": [1, 2]})
    assert made.clean.mask.tolist() == [[True, True, False], [True, True, True]]
    made.require_aligned()
    with pytest.raises(UserError, match="prompt 1 has 4 and 3 tokens"):
        pairs(corrupt=[[5, 6, 4, 9], [5, 6, 2]])


def test_rows() -> None:
    made = pairs(groups=[7, 8])
    for index in ([1], torch.tensor([False, True])):
        one = made.rows(index)
        assert one.clean.tokens.tolist() == [[5, 3, 2, 9]] and one.answer.tolist() == [2] and len(one) == 1
        assert one.position("S2").tolist() == [2] and one.groups.tolist() == [8]


def test_vocabulary() -> None:
    pairs().check_vocabulary(10)
    with pytest.raises(UserError, match="clean: token ids must lie between 0 and 8.*got 9"):
        pairs().check_vocabulary(9)
    with pytest.raises(UserError, match="answer: .*got 30"):
        pairs(answer=[30, 2]).check_vocabulary(10)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"clean": [[5, 3, 4, 9]]}, "same number of prompts; got 1 and 2"),
        ({"clean": []}, "clean: expected a list of lists"),
        ({"clean": [[], []]}, "none empty"),
        ({"clean": [5, 3]}, "clean: expected a list of lists"),
        ({"clean": [[5, 3, "x", 9], [5, 3, 2, 9]]}, "clean: prompt 0: token ids are integers.*'x'"),
        ({"corrupt": [[5, 6, 4, 9], [5, 6, -2, 9]]}, "corrupt: prompt 1: token ids are integers.*-2"),
        ({"corrupt": [[5, 6, 4, 9], [5, 1.5, 2, 9]]}, "corrupt: prompt 1: .*1.5"),
        ({"clean": [[True, 3, 4, 9], [5, 3, 2, 9]]}, "clean: prompt 0: .*True"),
        ({"answer": [3]}, "answer: expected one number a prompt, 2 in all; got 1"),
        ({"wrong": [3, None]}, "wrong: expected a list of integers"),
        ({"wrong": [4, 2]}, r"must differ.*prompts \[1\]"),
        ({"positions": {"S2": 1}}, "END among them"),
        ({"positions": [3]}, "END among them"),
        ({"positions": {"END": 4}}, "END: prompt 0 has 4 tokens, so columns 0 to 3; got 4"),
        ({"positions": {"END": -1}}, "END: expected a list of integers"),
        ({"positions": {"END": [3]}}, "END: expected one number a prompt"),
        ({"position": {}}, "unknown: position"),
    ],
)
def test_bad_content_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        pairs(**change)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing: positions, wrong"):
        from_mapping({key: GOOD[key] for key in ("clean", "corrupt", "answer")}, "pairs.json", "")
    with pytest.raises(UserError, match="expected a mapping"):
        from_mapping([1], "pairs.json", "")
    with pytest.raises(UserError, match="no such file"):
        load(TokenPairs(path=str(tmp_path / "none.json")))
    with pytest.raises(UserError, match="Give it with data.path=PAIRS.json"):
        Data.choose({"kind": "token_pairs"}, "data")
    file = tmp_path / "pairs.json"
    file.write_text("{")
    with pytest.raises(UserError, match="expected JSON like"):
        load(TokenPairs(path=str(file)))
