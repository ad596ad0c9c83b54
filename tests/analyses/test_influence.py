"""Influence scores against the definitions, in float64 on tiny models, and what must not change them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from analyses import influence_brute as brute
from models.tiny_models import tiny
from torch import Tensor

from repro.analyses.influence.api import fit_factors, scores, tracked_modules
from repro.analyses.influence_specs import InfluenceScores
from repro.data.token_blocks import Blocks

STRATEGIES = ["identity", "diagonal", "kfac", "ekfac"]
N, Q, T = 6, 3, 8


def settings(**given: Any) -> InfluenceScores:
    return InfluenceScores.parse({"dtype": "float64", "fisher": "empirical", **given}, "analysis")


def tokens(count: int, seed: int, length: int = T) -> Tensor:
    return torch.randint(2, 61, (count, length), generator=torch.Generator().manual_seed(seed))


def blocks() -> tuple[Blocks, Blocks]:
    return Blocks(tokens(N, 0)), Blocks(tokens(Q, 1))


def measured(model: Any, given: InfluenceScores, train: Blocks, query: Blocks) -> Any:
    return scores(model, fit_factors(model, train, given), query, train, given)


def close(found: Tensor, expected: Tensor, relative: float) -> None:
    assert float((found - expected).abs().max()) <= relative * float(expected.abs().max())


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("damping", [1e-3, None])
def test_scores_are_those_of_the_definition(strategy: str, damping: float | None) -> None:
    model, (train, query) = tiny("gpt2", dtype=torch.float64), blocks()
    given = settings(strategy=strategy, damping=damping)
    found = measured(model, given, train, query)
    names = [one.name for one in tracked_modules(model)]
    assert len(names) == 12 and found.modules == names
    expected = brute.scores(model, names, strategy, damping, train.tokens, query.tokens)
    close(found.per_module, expected, 1e-9)
    close(found.total, expected.sum(0), 1e-9)
