"""Removal: the right blocks go, the curves share their start, and shards change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from analyses.splitting import assert_split_equals_whole
from training import tuned_cases

from repro.analyses import removal
from repro.analyses.influence_study_specs import Removal
from repro.analyses.influence_variants import score_table
from repro.analyses.removal import retrainings
from repro.data import corpus
from repro.errors import UserError
from repro.training.retraining import losses


def spec(**values: Any) -> Removal:
    given = {"removed": [0, 3, 5], "repeats": 2, "first": 2, "strategies": ["identity"], **values}
    return Removal.parse(given, "analysis")


def test_the_first_blocks_of_each_order_go() -> None:
    order = np.array([[2, 0, 3, 1], [1, 3, 2, 0]])
    wanted = retrainings(order, [0, 1, 3], 1)
    assert [one.kept for one in wanted] == [(0, 1, 2, 3), (0, 1, 3), (1,), (0, 2, 3), (0,)]
    assert [one.seed for one in retrainings(order, [0, 1], 2)] == [0, 1] * 3


def test_blocks_go_by_the_sum_of_the_scores_of_the_first_queries(tmp_path: Path) -> None:
    model = tuned_cases.model(tmp_path)
    data, asked = corpus.load(model.origin.spec.text), spec()
    found = removal.run(model, data, None, None, asked)
    identity = asked.model_copy(update={"strategy": "identity"})
    table = score_table(model, data.blocks(model.tokenizer), identity, None)
    order = np.argsort(-table[:2].sum(0), kind="stable")
    assert found.arrays["order"].values[0].tolist() == order.tolist()
    assert sorted(found.arrays["order"].values[1].tolist()) == list(range(24))
    assert found.arrays["order"].axes["curve"] == ["identity", "random"]
    # Perplexity from the losses of the retrainings themselves.
    wanted = retrainings(found.arrays["order"].values, [0, 3, 5], 2)
    direct = np.exp(losses(model.origin, wanted)[:, :2].mean(1) / 15)
    perplexity = found.arrays["perplexity"].values
    assert np.array_equal(perplexity[0, 0], perplexity[1, 0])
    np.testing.assert_allclose(perplexity[0, 0], direct[:2])
    np.testing.assert_allclose(perplexity[1, 2], direct[8:10])
    rise = perplexity[0, 2].mean() - perplexity[0, 0].mean()
    assert found.scalars["rise.identity.5"] == found.scalars["rise.identity.last"] == pytest.approx(rise)
    assert_split_equals_whole(removal, model, data, asked, 10, tmp_path / "split", counts=(3,))


def test_what_cannot_be_removed_is_refused(tmp_path: Path) -> None:
    for wrong in ([0, 5, 3], [1, 2], [0, 2, 2]):
        with pytest.raises(UserError, match="rising numbers from 0 on"):
            spec(removed=wrong)
    model = tuned_cases.model(tmp_path)
    with pytest.raises(UserError, match="at most 23 of 24 training blocks; got 24"):
        removal.run(model, corpus.load(model.origin.spec.text), None, None, spec(removed=[0, 24]))
