"""Scores on repeated random tokens: hand-made patterns with known scores, and reads of a tiny model."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from analyses.lm_cases import measure, pairs
from models.tiny_models import tiny

from repro.analyses.lm_measure_specs import RandomTokenScores
from repro.analyses.random_token_scores import attention_scores
from repro.data.random_tokens import load
from repro.data.text_specs import RandomTokens
from repro.errors import UserError
from repro.interventions.lm_edits import At
from repro.interventions.lm_run import run
from repro.models.specs import Organism
from repro.training import lm_store

LENGTH = 4


def looks_at(key_of, columns):
    """A pattern [1, 1, T, T] in which query i attends to key_of(i), to nothing if that is None."""
    pattern = torch.zeros(1, 1, columns, columns)
    for query in range(columns):
        key = key_of(query)
        if key is not None and 0 <= key <= query:
            pattern[0, 0, query, key] = 1.0
    return pattern


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("name, step", [("previous_token", 1), ("duplicate_token", 4), ("induction", 3)])
def test_a_head_that_does_one_thing_has_score_one_in_it_and_none_in_others(name, step, start):
    columns, later = start + 2 * LENGTH, start + LENGTH
    first = start + 1 if name == "previous_token" else later
    found = attention_scores(looks_at(lambda i: i - step if i >= first else None, columns), start, LENGTH)
    assert {key: float(value) for key, value in found.items()} == {
        key: float(key == name) for key in ("previous_token", "duplicate_token", "induction")
    }


def test_the_last_query_of_the_first_copy_is_no_induction():
    early = looks_at(lambda i: 0 if i == LENGTH - 1 else None, 2 * LENGTH)
    assert float(attention_scores(early, 0, LENGTH)["induction"]) == 0


def test_half_the_attention_is_half_the_score():
    both = looks_at(lambda i: i - 4, 8) / 2 + looks_at(lambda i: i - 3 if i > 3 else None, 8) / 2
    found = attention_scores(both, 0, LENGTH)
    assert (float(found["duplicate_token"]), float(found["induction"])) == (0.5, 0.5)


def test_scores_of_a_model_are_loops_over_its_patterns_and_outputs():
    model, data = tiny("gpt2", dtype=torch.float64), load(RandomTokens(n=5, length=LENGTH, bos=0, seed=3))
    found = measure(model, data, RandomTokenScores(batch=2))
    batch = data.batch(model.vocabulary)
    both = run(model, batch, reads=[At("pattern", 1), At("z", 1)])
    pattern, z = both["pattern", 1][:, 2], both["z", 1][:, :, 2]
    later = range(1 + LENGTH, 1 + 2 * LENGTH)
    expected = {
        "previous_token": [pattern[:, i, i - 1] for i in range(2, 9)],
        "duplicate_token": [pattern[:, i, i - LENGTH] for i in later],
        "induction": [pattern[:, i, i - LENGTH + 1] for i in later],
        "copying": [
            (z[:, i] @ model.layers[1].output_matrix[2] * model.unembedding[batch.tokens[:, i + 1]]).sum(-1)
            for i in later[:-1]
        ],
    }
    for name, values in expected.items():
        per_sequence = found.arrays[f"{name}_per_sequence"].values[1, 2]
        np.testing.assert_allclose(per_sequence, torch.stack(values).mean(0), atol=1e-9, err_msg=name)
        assert found.arrays[name].values[1, 2] == pytest.approx(per_sequence.mean())
    loss = -both.logits[:, 5:8].log_softmax(-1).gather(-1, batch.tokens[:, 6:9, None]).mean()
    assert found.scalars["repeat.loss"] == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.slow
def test_the_trained_induction_model_has_heads_that_match_prefixes(tmp_path):
    """On blocks of 20 tokens that it never saw; a head of layer 0 looks back by one."""
    conf = Path(lm_store.__file__).parents[2] / "conf" / "model" / "induction_organism.yaml"
    settings = yaml.safe_load(conf.read_text())
    model = lm_store.load(Organism.parse(settings, "model"), {"device": "cpu"}, tmp_path)
    found = measure(model, load(RandomTokens(n=20, length=20, distinct=True)), RandomTokenScores())
    assert found.arrays["induction"].values[1].max() >= 0.7
    assert found.arrays["induction"].values[0].max() < 0.1
    assert found.arrays["previous_token"].values[0].max() > 0.3
    assert found.scalars["repeat.accuracy"] > 0.95


def test_other_data_is_refused():
    with pytest.raises(UserError, match="data=random_tokens"):
        measure(tiny("gpt2"), pairs(), RandomTokenScores())
