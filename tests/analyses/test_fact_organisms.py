"""What is known of the two models of facts: where the subject can be read, by construction and when trained.

The first two layers of one see two tokens, and every prompt goes on for three words after its subject: so the
last position cannot have the subject before the third layer, and cutting it off before then changes nothing.
The other sees everything from the first layer on, reads the subject there, and has no early site.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from analyses.fact_worlds import spec, untrained

from repro.analyses import attention_knockout
from repro.analyses.flow_specs import AttentionKnockout
from repro.data.fact_specs import FactsToy
from repro.data.facts import load
from repro.results import Result
from repro.training import lm_store

SUBJECT = ["subject", "first_subject", "last_subject"]
SETS: list[Any] = [*SUBJECT, "non_subject", "last"]


def flow(model: Any, size: int, subjects: int, n: int = 100) -> Result:
    asked = AttentionKnockout(sets=SETS, window=size, resamples=100)
    return attention_knockout.run(model, load(FactsToy(subjects=subjects, n=n)), None, None, asked)


def changes(result: Result, name: str) -> np.ndarray:
    """Relative change [prompt, layer] of a set."""
    return result.arrays["relative_change"].select(set=name).values


@pytest.mark.parametrize("size, still", [(1, [0, 1]), (2, [0, 1]), (3, [0]), (4, [0]), (9, [])])
def test_subjects_cannot_be_read_below_the_global_layers(size: int, still: list[int]) -> None:
    """Zeros are exact at every centre whose window holds local layers only, for any weights."""
    result = flow(untrained("gpt_neo"), size, 50)
    for name in SUBJECT:
        moved = changes(result, name) != 0
        assert not moved[:, still].any(), name
        assert moved[:, [layer for layer in range(4) if layer not in still]].all(), name
        assert result.scalars[f"first_layer.{name}"] == len(still)
    assert (changes(result, "last") != 0).all(), "the last position sees itself in every layer"
    assert result.scalars["first_layer.non_subject"] == 0, "and the word before it"


def test_the_plain_model_can_read_the_subject_anywhere() -> None:
    result = flow(untrained("gpt2"), 1, 50)
    for name in SUBJECT:
        assert (changes(result, name) != 0).all() and result.scalars[f"first_layer.{name}"] == 0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trained")


def trained(name: Any, store: Path) -> Any:
    return lm_store.load(spec(name), {"device": "cpu"}, store)


@pytest.mark.slow
def test_the_local_then_global_model_has_the_published_order(store: Path) -> None:
    """Relation words first, the subject in the global layers, its last token more than its first."""
    model = trained("facts_organism", store)
    for size in (1, 2):
        result = flow(model, size, 200, n=200)
        scalars = result.scalars
        assert scalars["agreeing.share"] > 0.98 and scalars["base.mean"] > 0.85
        assert scalars["early.subject"] == 0 and scalars["first_layer.subject"] == 2
        assert scalars["argmin.subject"] >= 2 and scalars["min.subject"] < -25
        assert scalars["order.non_subject_first"] == 1
        assert scalars["min.last_subject"] < 2 * scalars["min.first_subject"]


@pytest.mark.slow
def test_the_plain_model_has_no_early_site(store: Path) -> None:
    """It reads the subject in the first layer: cut off there the answer is gone, and later hardly."""
    result = flow(trained("facts_plain_organism", store), 1, 500, n=200)
    curve = result.arrays["mean"].select(set="subject").values
    assert result.scalars["agreeing.share"] > 0.98
    assert result.scalars["argmin.subject"] == 0 and curve[0] < -50 and (curve[1:] > 0.5 * curve[0]).all()
    assert result.scalars["early.subject"] == -curve[0]
    assert result.scalars["order.non_subject_first"] == 0
