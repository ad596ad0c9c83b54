"""Models of the small world of facts with random weights: what holds by construction holds for them, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from repro.data.lm_tasks import build
from repro.models import organism
from repro.models.huggingface import wrap
from repro.models.language_model import LanguageModel
from repro.models.specs import Organism
from repro.training import lm_tokenizer

CONF = Path(organism.__file__).parents[2] / "conf" / "model"


def spec(name: Literal["facts_organism", "facts_plain_organism"], **values: Any) -> Organism:
    """The organism of conf/model."""
    return Organism.parse({**yaml.safe_load((CONF / f"{name}.yaml").read_text()), **values}, "model")


def untrained(architecture: str = "gpt_neo", subjects: int = 50, seed: int = 0) -> LanguageModel:
    """One of the two organisms, in float64, with the world's tokenizer and large random weights."""
    name = "facts_organism" if architecture == "gpt_neo" else "facts_plain_organism"
    made = spec(name, width=32, task={"kind": "facts", "subjects": subjects})
    task = build(made.task)
    hf = organism.build(made, len(task.vocabulary), 0, seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.normal_(std=0.35)
    return wrap(hf.double(), lm_tokenizer.build(task.vocabulary, task.start))
