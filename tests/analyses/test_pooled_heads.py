"""Heads pooled over seeds: circuits of known strength, and learning times from known histories."""

from __future__ import annotations

import numpy as np
import pytest

from repro.analyses import pooled_heads
from repro.analyses.pooled_heads import run, summary
from repro.analyses.specs import PooledHeads
from repro.data.specs import Sequences
from repro.errors import UserError
from tests.analyses.small_runs import SEQUENCES, Run, circuit, circuit_run, features
from tests.analyses.splitting import assert_split_equals_whole

POOLS = {
    "5": {"main": "first", "only": {"1:0": "fast", "1:1": "never"}},
    "6": {"main": "second", "only": {"1:1": "slow"}},
}


def learned(*losses: float) -> Run:
    """A run of 320 sequences with these losses at equally spaced evaluations, the last at its end."""
    points = np.linspace(0, 10, len(losses)).astype(int)
    return Run({320: circuit()}, {"points": points, "eval_fsl_train_loss": np.array(losses)})


@pytest.fixture(scope="module")
def subject():
    return {
        "first": circuit_run(),
        "second": circuit_run(copies=((0, 1), (2,))),
        "fast": learned(1.0, 0.2, 0.3),
        "slow": learned(1.0, 0.2773, 0.1),
        "never": learned(1.0, 0.9, 0.8),
    }


@pytest.fixture(scope="module")
def result(subject):
    return run(subject, features(), None, None, PooledHeads.parse({"pools": POOLS}, "analysis"))


def test_every_seed_is_measured_at_its_own_model(result):
    assert result.arrays["strength"].axes == {"seed": ["5", "6"], "head": ["1:0", "1:1"]}
    np.testing.assert_allclose(result.arrays["strength"].values, [[1, 0], [1, 0]], atol=1e-5)
    # Of the second seed, 1:0 misses label 2; 1:1 says 2 wherever it is in the context.
    np.testing.assert_allclose(result.arrays["only_accuracy"].values, [[1, 1 / 3], [2 / 3, 1 / 2]])
    assert result.arrays["only_loss"].values[0, 1] == pytest.approx(np.log(3), abs=1e-3)
    assert result.arrays["accuracy"].values[0] == 1


def test_learning_times(result):
    np.testing.assert_array_equal(result.arrays["time_alone"].values, [[160, 320], [np.nan, 320]])
    assert result.scalars["never_alone"] == 1
    assert (result.scalars["time_alone.min"], result.scalars["time_alone.max"]) == (160, 320)


def test_correlations_by_hand():
    strength = np.array([[1.0, 2.0], [3.0, 4.0]])
    time = np.array([[300.0, np.nan], [200.0, 100.0]])
    found = summary(strength, strength**2, 1 / strength, time)
    assert found["spearman_strength_only_accuracy"] == pytest.approx(1)
    assert found["spearman_strength_only_loss"] == pytest.approx(-1)
    assert found["spearman_strength_time_alone"] == pytest.approx(-1)
    without = summary(strength, strength, strength, np.full((2, 2), np.nan))
    assert np.isnan(without["spearman_strength_time_alone"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"pools": {"5": {"main": "third"}}}, "condition.*'first'"),
        ({"pools": {"5": {"main": "first", "only": {"0:1": "fast"}}}}, "pools.5.only.*1:0, 1:1"),
        (
            {"pools": {"5": {"main": "first", "only": {"1:1": "fast"}}}, "evaluator": "x"},
            "evaluator.*fsl_train",
        ),
        ({"pools": {"5": {"main": "first"}, "6": {"main": "other"}}}, "pools.6.*sequences differ"),
    ],
)
def test_what_cannot_be_pooled_is_refused(subject, change, says):
    spec = PooledHeads.parse({"sequences": 10, **change}, "analysis")
    fewer = Sequences.parse({**SEQUENCES.model_dump(), "labels": 2}, "sequences")
    other = Run({320: circuit()}, sequences=fewer)
    with pytest.raises(UserError, match=says):
        run({**subject, "other": other}, features(), None, None, spec)


def test_a_pool_needs_its_main_condition():
    with pytest.raises(UserError, match="main"):
        PooledHeads.parse({"pools": {"5": {"only": {}}}}, "analysis")


def test_split_over_pools(subject, tmp_path):
    pools = {**POOLS, "7": {"main": "third", "only": {}}}
    asked = PooledHeads.parse({"pools": pools}, "analysis")
    assert asked.items(lambda _: {}) == 3
    subjects = {**subject, "third": circuit_run(copies=((0,), (1, 2)))}
    assert_split_equals_whole(pooled_heads, subjects, features(), asked, 3, tmp_path, (2, 3))
