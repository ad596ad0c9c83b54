"""Thinning: short series whole, long ones evenly, evaluations always."""

import numpy as np
import pytest

from repro.thinning import Thinner


def passed_on(thinner, blocks, name="loss"):
    out = []
    for steps, columns in blocks:
        out += list(thinner(np.asarray(steps), {k: np.asarray(v, float) for k, v in columns.items()}, ""))
    live = [
        int(s)
        for steps, columns, _ in out
        if name in columns
        for s, v in zip(steps, columns[name], strict=True)
        if v == v
    ]
    late = [int(s) for steps, columns, _ in thinner.rest() if name in columns for s in steps]
    return live, late


def test_a_long_series_is_thinned_evenly():
    steps = np.arange(31_250)
    live, late = passed_on(
        Thinner(1000, last_step=31_250), [(part, {"loss": part}) for part in np.array_split(steps, 40)]
    )
    assert len(live) == 1000 and not late
    gaps = np.diff(live)
    assert gaps.min() >= 31 and gaps.max() <= 32


def test_a_short_series_is_passed_on_whole_though_unevenly_spaced():
    steps = [1, 2, 3, 4, 10, 100, 1000, 10_000]
    live, late = passed_on(Thinner(100, last_step=10_000), [([step], {"loss": [step]}) for step in steps])
    assert sorted(live + late) == steps
    assert late  # some came at the end, for nothing told before that the series would stay short


def test_evaluations_and_the_loss_beside_them_are_always_passed_on():
    steps = np.arange(1000)
    accuracy = np.where(steps % 7 == 0, 0.5, np.nan)
    for name in ("accuracy", "loss"):
        live, _ = passed_on(
            Thinner(10, last_step=1000), [(steps, {"loss": steps, "accuracy": accuracy})], name
        )
        assert set(range(0, 1000, 7)) <= set(live)


@pytest.mark.parametrize("chunks", [1, 50])
def test_an_unknown_end(chunks):
    steps = np.arange(100_000)
    live, late = passed_on(Thinner(1000), [(part, {"loss": part}) for part in np.array_split(steps, chunks)])
    assert live[:1000] == list(range(1000))
    assert len(live) < 6000 and not late
    assert np.diff(live).max() < 1000


def test_conditions_are_series_of_their_own():
    thinner, steps = Thinner(10, last_step=100), np.arange(100)
    counts = [sum(len(block[0]) for block in thinner(steps, {"loss": steps * 1.0}, name)) for name in "ab"]
    assert counts == [10, 10]
