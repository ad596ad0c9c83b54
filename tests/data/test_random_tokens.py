"""Repeated random tokens: copies are equal, ids lie in the range, seeds decide."""

from __future__ import annotations

import pytest
import torch

from repro.data.random_tokens import load
from repro.data.specs import Data, RandomTokens
from repro.errors import UserError


def test_copies_are_equal_and_in_range() -> None:
    made = load(RandomTokens(n=3, length=50, repeats=3, low=10, high=40))
    tokens = made.batch(100).tokens
    assert tokens.shape == (3, 150) and int(tokens.min()) >= 10 and int(tokens.max()) <= 39
    assert torch.equal(tokens[:, :50], tokens[:, 50:100]) and torch.equal(tokens[:, :50], tokens[:, 100:])
    assert made.start == 0 and made.length == 50 and bool(made.batch(100).mask.all())


def test_whole_vocabulary_start_token_and_distinct_ids() -> None:
    made = load(RandomTokens(n=2, length=20, bos=0, low=1, distinct=True))
    tokens = made.batch(21).tokens
    assert tokens.shape == (2, 41) and tokens[:, 0].tolist() == [0, 0] and made.start == 1
    assert all(sorted(row[1:21].tolist()) == list(range(1, 21)) for row in tokens)


def test_seeds() -> None:
    same, other = RandomTokens(seed=3), RandomTokens(seed=4)
    assert torch.equal(load(same).batch(50).tokens, load(same).batch(50).tokens)
    assert not torch.equal(load(same).batch(50).tokens, load(other).batch(50).tokens)
    assert load(same).sha256 == load(same).sha256 != load(other).sha256


@pytest.mark.parametrize(
    ("change", "vocabulary"), [({"high": 200}, 100), ({"low": 100}, 100), ({"bos": 100}, 100)]
)
def test_ranges_beyond_the_vocabulary(change: dict[str, int], vocabulary: int) -> None:
    with pytest.raises(UserError, match="<= 100, the model's vocabulary"):
        load(RandomTokens(**change)).batch(vocabulary)


def test_impossible_ranges() -> None:
    with pytest.raises(UserError, match="expected low < high"):
        Data.choose({"kind": "random_tokens", "low": 5, "high": 5}, "data")
    with pytest.raises(UserError, match="data.distinct: 100 distinct ids do not fit"):
        load(RandomTokens(distinct=True)).batch(50)
