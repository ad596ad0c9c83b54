"""Heads along checkpoints: split or not, by either way of measuring."""

from __future__ import annotations

import numpy as np
import pytest

from repro.analyses import icl_formation, icl_measures
from repro.analyses.specs import IclFormation
from repro.training.metrics import UNITS
from repro.training.specs import Training
from tests.analyses.small_runs import Run, circuit, features, random_run
from tests.analyses.splitting import assert_split_equals_whole

CHECKPOINTS = (0, 64, 128, 192, 320)


@pytest.fixture(scope="module")
def subject():
    history = {"points": np.array([0, 5, 10]), "train_loss": np.ones(10), "train_grad_norm": np.ones(10)}
    history |= {f"eval_fsl_train_{metric}": np.array([1.0, 0.5, 0.25]) for metric in UNITS}
    models = {at: circuit(connected=at > 100) for at in CHECKPOINTS}
    return {"": Run(models, history)}


def test_split_over_checkpoints(subject, tmp_path):
    asked = IclFormation(checkpoints=4)
    training = Training(sequences=320, checkpoint_at=list(CHECKPOINTS[:-1]))
    items = asked.items(lambda _: {"training": training, "conditions": {}})
    assert items == 4
    assert_split_equals_whole(icl_formation, subject, features(), asked, items, tmp_path, (2, 3))


def test_a_part_is_measured_in_the_same_way_as_the_whole(tmp_path, monkeypatch):
    """Shared prefixes round differently: whether they are used must not depend on a part's checkpoints."""
    run = random_run(1)
    run.models = {at: random_run(at).model() for at in CHECKPOINTS}
    history = {"points": np.array([0, 10]), "train_loss": np.ones(10), "train_grad_norm": np.ones(10)}
    run.history = history | {f"eval_fsl_train_{metric}": np.array([1.0, 0.5]) for metric in UNITS}
    monkeypatch.setattr(icl_measures, "WORTH_SHARING", 40 * 3)
    asked = IclFormation(checkpoints=5, sequences=40)
    assert_split_equals_whole(icl_formation, {"": run}, features(), asked, 5, tmp_path, (3,))
