"""The small models of conf/model, trained for real: they can do what they are for, and how is known.

Where a mechanism is asserted, it is measured here from the library's own attention patterns.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from repro.data.lm_tasks import build
from repro.models.language_model import LanguageModel
from repro.models.specs import Organism
from repro.training import lm_evaluation, lm_store

CONF = Path(lm_store.__file__).parents[2] / "conf" / "model"
NAMES = sorted(
    path.stem
    for path in CONF.glob("*_organism.yaml")
    if yaml.safe_load(path.read_text())["kind"] == "organism"  # others are trained on texts
)


def spec(name: str, **values: Any) -> Organism:
    return Organism.parse({**yaml.safe_load((CONF / f"{name}.yaml").read_text()), **values}, "model")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trained")


def facts(made: Organism, store: Path) -> dict[str, Any]:
    return json.loads((lm_store.ensure(made, store) / lm_store.FACTS).read_text())


def test_the_files_are_what_they_are_called() -> None:
    assert NAMES == [
        "facts_organism",
        "facts_plain_organism",
        "in_context_organism",
        "induction_organism",
        "ioi_organism",
    ]
    assert all(spec(name).until for name in NAMES)
    assert spec("ioi_organism").task.kind == "ioi" and spec("induction_organism").task.kind == "repeats"


@pytest.mark.slow
def test_the_ioi_model_knows_the_rule_and_not_the_names(store: Path) -> None:
    found = facts(spec("ioi_organism"), store)
    metrics = found["metrics"]
    assert metrics["held_out_prefers"] >= 0.99 and metrics["held_out_accuracy"] >= 0.98
    assert metrics["held_out_logit_difference"] > 3
    assert abs(metrics["abc_logit_difference"]) < 0.2, "with a third giver neither name is preferred"
    assert found["cpu_seconds"] < 120


@pytest.mark.slow
def test_the_induction_model_has_induction_heads(store: Path) -> None:
    """In layer 1 a head looks at what followed the same token before; in layer 0 heads look one token back.

    Layer 1 without attention no longer predicts repeats.
    """
    made = spec("induction_organism")
    model = lm_store.load(made, {"device": "cpu"}, store)
    probe = build(made.task).probes()["third"]
    period, tokens = made.task.longest // 3, torch.from_numpy(probe.tokens)
    with torch.no_grad():
        patterns = model.hf(tokens, output_attentions=True).attentions
    places = np.arange(period, 2 * period)  # the second copy: in the third there are two places to look at
    prefix = [pattern[:, :, places, places - period + 1].mean((0, 2)) for pattern in patterns]
    assert prefix[1].max() > 0.8 and prefix[0].max() < 0.2
    first = np.arange(1, period)
    previous = patterns[0][:, :, first, first - 1].mean((0, 2))
    assert previous.max() > 0.4
    before = lm_evaluation.measure(model.hf, probe)["accuracy"]
    assert before > 0.98 and accuracy_without(model, 1, probe) < 0.3


def accuracy_without(model: LanguageModel, layer: int, probe: Any) -> float:
    """Accuracy when the attention of one layer adds nothing."""
    attention = model.hf.transformer.h[layer].attn
    handle = attention.register_forward_hook(lambda *all: (torch.zeros_like(all[2][0]), *all[2][1:]))
    try:
        return lm_evaluation.measure(model.hf, probe)["accuracy"]
    finally:
        handle.remove()
