"""What fine-tuning costs, by hand, and in the estimate of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from repro import config
from repro.job_costs import load_of
from repro.models.known_shapes import KNOWN
from repro.models.specs import Model
from repro.tuning_costs import step_flops, training

GPT2 = KNOWN["gpt2"]
ARTICLES = {"kind": "articles", "block": 64, "train": 512, "query": 32, "pretraining_words": 64_000}


def test_a_step_is_three_forward_passes() -> None:
    """6 operations a weight and token (the unembedding among them), and attention: 12 x width x T a layer."""
    weights = 12 * 12 * 768**2 + 50257 * 768
    expected = 512 * (6 * weights + 12 * 12 * 768 * 512)
    assert step_flops(GPT2, 1, 512) == pytest.approx(expected, rel=0.01)
    assert step_flops(GPT2, 10, 512) == pytest.approx(10 * step_flops(GPT2, 1, 512))


def test_epochs_of_both_trainings_count() -> None:
    def flops(**given: object) -> float:
        return training(Model.choose({"kind": "text_organism", "text": ARTICLES, **given}, "model"), GPT2)[1]

    tokens = 1.4 * 64_000
    block = step_flops(GPT2, 1, 64)
    assert flops() == pytest.approx((3 * 512 + 3 * tokens / 64) * block)
    assert flops(pretraining={"epochs": 0}, tuning={"epochs": 2}) == pytest.approx(2 * 512 * block)


@pytest.mark.parametrize("model", ["text_organism", "gpt2_wikitext"])
def test_an_estimate_counts_training_once(model: str, tmp_path: Path) -> None:
    chosen = ["paper/influence=pairwise", f"model={model}", f"runs_dir={tmp_path}"]
    found = config.compose(chosen + (["data=wikitext"] if model == "gpt2_wikitext" else []))
    load = load_of(found, 1)
    (run,) = load.trainings
    assert load.known and run.flops > 0 and "none if it was trained before" in run.says
    assert load.shape is not None and load.cost.total_flops(load.shape) > 0
