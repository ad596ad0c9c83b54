"""Very small models that are tuned on a few blocks, shared by tests of training and of analyses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from repro.models.language_model import LanguageModel
from repro.models.specs import Model
from repro.training import tuned_store

HARDWARE = {"executor": "inline", "device": "cpu", "threads": 1}
DATA = {
    "kind": "articles", "block": 16, "train": 24, "query": 4, "words": 400, "pretraining_words": 1500,
}  # fmt: skip


def spec(data: dict[str, Any] | None = None, tuning: dict[str, Any] | None = None, **values: Any) -> Any:
    """A model of one narrow layer, pretrained for a few steps."""
    small = {"depth": 1, "heads": 2, "width": 16, "vocabulary": 300, "pretraining": {"learning_rate": 5e-3}}
    fast = {"learning_rate": 5e-3, "dropout": 0.0, "epochs": 2, **(tuning or {})}
    text = {**DATA, **(data or {})}
    return Model.choose({"kind": "text_organism", "text": text, "tuning": fast, **small, **values}, "model")


def model(store: Path, **values: Any) -> LanguageModel:
    """Such a model, trained."""
    return tuned_store.load(spec(**values), HARDWARE, store)
