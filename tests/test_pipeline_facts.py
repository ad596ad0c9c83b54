"""What a run says of its model and data: the paper's own, a stand-in, or another."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from repro import pipeline
from repro.data.specs import Data
from repro.models.specs import HuggingFace, Model, NoModel, Organism

ORGANISM = Organism(task={"kind": "repeats"})  # type: ignore[arg-type]
PUBLISHED = SimpleNamespace(is_published=True, source="somewhere", sha256="0")


def facts(model: Model | None, data: Any) -> dict[str, Any]:
    config = SimpleNamespace(changed={}, values={"paper": {}, "seed": 0})
    specs = {"model": model, "data": Data.choose({"kind": "random_tokens"}, "data")}
    return pipeline._facts(config, specs, data)["facts"]  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [PUBLISHED, None])
def test_a_model_trained_by_the_harness_is_a_stand_in_whatever_the_data(data: Any) -> None:
    found = facts(ORGANISM, data)
    assert found["subject"] == "embedded"
    assert found["note"] == "Small model trained by the harness: not the paper's."


@pytest.mark.parametrize("model", [NoModel(), None, HuggingFace(path="gpt2")])
def test_other_models_are_no_stand_ins(model: Model | None) -> None:
    assert "note" not in facts(model, PUBLISHED) and facts(model, PUBLISHED)["subject"] != "embedded"
