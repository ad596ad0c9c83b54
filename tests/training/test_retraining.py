"""Retrainings: what they compute, that each is kept, and that interrupted ones are the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional
from training import tuned_cases
from transformers import AutoModelForCausalLM

from repro import stopping
from repro.training import lm_loop, retraining
from repro.training.retraining import Retraining, block_losses, losses
from repro.training.tuned_store import Origin

ALL = tuple(range(24))
HALF = tuple(range(0, 24, 2))


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Origin:
    return tuned_cases.model(tmp_path_factory.mktemp("store")).origin


def test_all_blocks_with_the_same_seed_give_the_tuned_model(origin: Origin) -> None:
    tuned = AutoModelForCausalLM.from_pretrained(origin.folder)
    query = origin.blocks().query.tokens
    with torch.no_grad():
        logits = tuned(query).logits.double()
    by_hand = [
        float(functional.cross_entropy(row[:-1], block[1:], reduction="sum"))
        for row, block in zip(logits, query, strict=True)
    ]
    np.testing.assert_allclose(losses(origin, [Retraining(ALL, 1004)])[0], by_hand, rtol=1e-5)
    np.testing.assert_allclose(block_losses(tuned, query), by_hand, rtol=1e-5)


def test_each_is_trained_once_in_whatever_order(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Retraining(HALF, 0), Retraining(HALF, 1)
    found = losses(origin, [first, second, first])
    assert np.array_equal(found[0], found[2]) and not np.array_equal(found[0], found[1])
    assert retraining.is_done(origin, first) and not retraining.is_done(origin, Retraining(HALF, 2))
    monkeypatch.setattr(lm_loop, "run", lambda *_: pytest.fail("trained again"))
    assert np.array_equal(losses(origin, [second, first]), found[1::-1])


def test_interrupted_ones_go_on_where_they_were(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [Retraining(HALF, 10), Retraining(ALL, 11)]
    # The first is done in two steps; the second, of six, is stopped after its fourth.
    asked = iter([None] * 5 + ["stop"] * 2)
    with monkeypatch.context() as patched, pytest.raises(stopping.Stopped):
        patched.setattr(stopping, "asked", lambda: next(asked))
        losses(origin, wanted)
    assert [retraining.is_done(origin, one) for one in wanted] == [True, False]
    found = losses(origin, wanted)
    other = replace(origin, store=origin.store / "again")
    np.testing.assert_array_equal(losses(other, wanted), found)


def test_processes_side_by_side_give_the_same(origin: Origin) -> None:
    wanted = [Retraining(HALF, seed) for seed in (20, 21, 22)]
    here = losses(replace(origin, store=origin.store / "here"), wanted)
    assert np.array_equal(losses(replace(origin, workers=2), wanted), here)
