"""Sequences for induction and copying: the published recipe, and what is read from files."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from data.test_few_shot_tasks import letters

from repro.data import token_sequences
from repro.data.token_sequence_specs import InductionSequences, TokenSequences
from repro.data.token_sequences import Generated, TokenSequence, merged_tokens, period
from repro.errors import UserError

PAIRS = [(first, second) for first in "abcdefghij" for second in "klmnopqrst"]  # 100 merges


def model(tokenizer: Any = None, vocabulary: int = 500) -> Any:
    return SimpleNamespace(tokenizer=tokenizer, vocabulary=vocabulary)


def made(**values: Any) -> Generated:
    found = token_sequences.load(InductionSequences(**values))
    assert isinstance(found, Generated)
    return found


def test_the_published_lengths() -> None:
    spec = InductionSequences()
    assert spec.lengths == [2 * s + 25 for s in range(100)]
    assert (1 + 4 * spec.lengths[0], spec.longest) == (101, 893)


def test_tokens_are_drawn_from_the_middle_of_the_merges() -> None:
    tokenizer = letters("</s>", PAIRS)
    ranked = [tokenizer.convert_tokens_to_ids(first + second) for first, second in PAIRS]
    assert merged_tokens(tokenizer) == ranked
    # 4 % of 100 merges at each end: ranks 4 to 95. Drawn one sequence after another from one stream.
    rng, data = np.random.RandomState(3), made(count=3, first=5, step=2, seed=3)
    for one, length in zip(data.repeated(model(tokenizer)), (5, 7, 9), strict=True):
        block = tuple(rng.choice(np.array(ranked[4:96]), length, replace=False).tolist())
        assert one == TokenSequence((tokenizer.bos_token_id, *block * 4), 1, length)
        assert len(set(block)) == length
    rng = np.random.RandomState(3)
    for one, length in zip(data.distinct(model(tokenizer)), (20, 28, 36), strict=True):
        assert one.tokens == (
            tokenizer.bos_token_id, *rng.choice(np.array(ranked[4:96]), length, replace=False).tolist()
        )  # fmt: skip


def test_olssons_variant() -> None:
    found = made(count=10, first=25, step=0).repeated(model(letters("</s>", PAIRS)))
    assert [(len(one.tokens), one.block) for one in found] == [(101, 25)] * 10
    assert len({one.tokens for one in found}) == 10


def test_without_merges_or_tokenizer_all_ids_are_drawn_from() -> None:
    plain = letters("</s>")
    found = made(count=1, first=20, step=0).distinct(model(plain))[0]
    assert found.start == 1 and plain.bos_token_id not in found.tokens[1:]
    bare = made(count=1, first=20, step=0, bos=7).distinct(model(None, 100))[0]
    assert bare.tokens[0] == 7 and 7 not in bare.tokens[1:] and max(bare.tokens) < 100
    assert made(count=1, first=3, step=0).repeated(model(None, 100))[0].start == 0
    with pytest.raises(UserError, match="60 different tokens are needed, and 48 can be drawn"):
        made(count=1, first=15, step=0).distinct(model(None, 52))


def test_small_contexts_get_shorter_blocks() -> None:
    organism: Any = SimpleNamespace(context=64)
    spec = InductionSequences().for_model(organism)
    assert isinstance(spec, InductionSequences)
    assert spec.longest <= 64 and spec.count == len(spec.lengths) > 5
    large: Any = SimpleNamespace(context=2048)
    assert InductionSequences().for_model(large) == InductionSequences()


@pytest.mark.parametrize(
    "tokens, expected",
    [([1, 2, 3, 1, 2, 3], 3), ([4, 4], 1), ([1, 2, 1, 2, 1], 2), ([1, 2, 3], 0), ([1, 2, 3, 1, 2], 0)],
)
def test_the_smallest_period_with_two_copies(tokens: list[int], expected: int) -> None:
    assert period(tokens) == expected


@pytest.mark.parametrize(
    "content, expected",
    [
        ([[9, 1, 2, 3, 1, 2, 3]], [(1, 3)]),
        ([[1, 2, 3, 1, 2, 3]], [(0, 3)]),
        ([{"tokens": [9, 1, 1, 1, 1], "block": 2}], [(0 + 1, 2)]),
        ([{"tokens": [1, 2, 1, 2]}, [5, 6, 7]], [(0, 2), (1, 0)]),
        ({"block": 2, "sequences": [[0, 1, 2, 1, 2], [0, 3, 4, 3, 4]]}, [(1, 2), (1, 2)]),
        ({"tokens": [0, 1, 2, 1, 2]}, [(1, 2)]),
    ],
)
def test_files(content: Any, expected: list[tuple[int, int]], tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps(content))
    found = token_sequences.load(TokenSequences(path=str(path)))
    given = found.distinct(None)
    assert [(one.start, one.block) for one in given] == expected
    if all(block for _, block in expected):
        assert found.repeated(None) == given
    else:
        with pytest.raises(UserError, match="sequence 1: prefix matching needs a block that is repeated"):
            found.repeated(None)


@pytest.mark.parametrize(
    "content, said",
    [
        ([[1, -2, 3]], "sequence 0: expected two token ids or more"), ([[1]], "two token ids"),
        ([{"tokens": [1, 2, 3, 1, 2], "block": 2}], "do not repeat so"),
        ([{"tokens": [1, 2, 1, 2], "block": 0}], "block: expected"),
        ([{"tokens": [1, 2, 1, 2], "start": 5}], "start: expected 0 or 1"), ([], "there is none"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_are_refused(content: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=said):
        token_sequences.load(TokenSequences(path=str(path)))
