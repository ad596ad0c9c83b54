"""Prompts about subjects as random token ids for tiny language models."""

from __future__ import annotations

from typing import Any

from repro.data.fact_specs import PromptsFile
from repro.data.facts import FactData
from repro.data.facts_records import Fact

# Of different lengths; two are the same, and two others share their subject.
PROMPTS: list[tuple[list[int], tuple[int, int]]] = [
    ([5, 9, 3, 17, 40, 8], (1, 3)),
    ([8, 2, 33, 21], (0, 1)),
    ([7, 7, 4, 60, 31, 12, 18], (2, 4)),
    ([5, 9, 3, 17, 40, 8], (1, 3)),
    ([20, 4, 60, 11, 13], (1, 3)),
]


def token_facts(prompts: list[tuple[list[int], tuple[int, int]]] = PROMPTS, **spec: Any) -> FactData:
    """Data of prompts that are token ids with half-open subject ranges, in float64 tests of any model."""
    facts = tuple(
        Fact(i, f"prompt {i}", tokens=tuple(ids), span=span) for i, (ids, span) in enumerate(prompts)
    )
    return FactData(PromptsFile(path="made up", **spec), facts, "made up", "0" * 64)
