"""Causal scrubbing as an analysis: what each hypothesis must recover by its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models.tiny_models import tiny

from repro.analyses import causal_scrubbing
from repro.analyses.specs import Analysis
from repro.data.token_pairs import from_mapping
from repro.errors import UserError
from repro.interventions.lm_run import run

EVERYTHING = [
    "embedding",
    *(f"{layer}.{head}" for layer in range(3) for head in range(4)),
    "mlp0",
    "mlp1",
    "mlp2",
]
HYPOTHESES = {
    "nothing": {},
    "everything": {"children": {"all": {"nodes": EVERYTHING}}},
    "half": {"children": {"some": {"nodes": EVERYTHING[:8]}}},
    "twins": {"others": "twin"},
}


def pairs(rows: int = 12):
    random = np.random.default_rng(0)
    clean, corrupt = (random.integers(2, 61, (rows, 7)).tolist() for _ in range(2))
    answer, wrong = ([row[1] for row in clean], [row[2] for row in clean])
    made = {
        "clean": clean,
        "corrupt": corrupt,
        "answer": answer,
        "wrong": wrong,
        "positions": {"END": 6, "S1": 2},
    }
    return from_mapping(made, "test", "0")


def scrub(**values):
    spec = Analysis.choose(
        {"kind": "causal_scrubbing", "hypotheses": HYPOTHESES, "samples": 40, **values}, "analysis"
    )
    return causal_scrubbing.run(tiny("gpt2", "sdpa", torch.float64), pairs(), None, None, spec)


def test_nothing_recovers_nothing_and_everything_everything():
    result = scrub()
    assert result.scalars["nothing.recovered"] == 0 and result.scalars["nothing.recovered_loss"] == 0
    assert result.scalars["everything.recovered"] == pytest.approx(1, abs=1e-9)
    assert result.scalars["everything.recovered_loss"] == pytest.approx(1, abs=1e-9)
    assert result.scalars["everything.logit_difference"] == pytest.approx(
        result.scalars["model.logit_difference"]
    )
    values = result.arrays["logit_difference"].values
    np.testing.assert_allclose(values[1], result.arrays["model_logit_difference"].values, atol=1e-9)
    np.testing.assert_allclose(values[0], result.arrays["base_logit_difference"].values, atol=1e-12)
    assert list(result.arrays["recovered"].axes["hypothesis"]) == list(HYPOTHESES)


def test_with_labels_of_the_other_prompt_nothing_scrubbed_is_the_model_on_others():
    """Each sample is then the model on an unrelated prompt, scored with that prompt's own answer."""
    data, model = pairs(), tiny("gpt2", "sdpa", torch.float64)
    logits = run(model, data.clean, logits=data.positions["END"]).logits
    rows = torch.arange(len(data))
    own = (logits[rows, data.answer] - logits[rows, data.wrong]).numpy()
    found = scrub(labels="other").arrays["logit_difference"].values[0]
    assert len(set(found.round(9))) > 5
    assert np.abs(found[:, None] - own).min(axis=1).max() < 1e-9
    found = scrub(labels="reference").arrays["logit_difference"].values[0]
    assert np.abs(found[:, None] - own).min(axis=1).max() > 1e-3


def test_batch_size_does_not_matter():
    one, many = scrub(batch=3), scrub(batch=64)
    for name, array in one.arrays.items():
        np.testing.assert_allclose(array.values, many.arrays[name].values, atol=1e-10)


def test_features_need_data_that_have_them():
    with pytest.raises(UserError, match="no feature IO. Valid: none"):
        scrub(hypotheses={"a": {"others": ["IO"]}})


def test_node_names_are_checked():
    with pytest.raises(UserError, match="Write a head as '9.6' in quotes"):
        scrub(hypotheses={"a": {"children": {"b": {"nodes": ["head nine"]}}}})
