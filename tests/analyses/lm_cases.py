"""Prompts as random token ids for tiny language models, of two lengths and two templates."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any

import torch

from repro.analyses.base_specs import Analysis
from repro.data.token_batch import TokenBatch
from repro.data.token_pairs import PromptPairs, from_mapping
from repro.results import Result

LENGTHS = (9, 9, 7, 9, 7)


def pairs(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> PromptPairs:
    """One prompt a length, clean and corrupt of the same length; prompts of one length are one template."""
    generator = torch.Generator().manual_seed(seed)

    def rows() -> list[list[int]]:
        return [torch.randint(2, 61, (length,), generator=generator).tolist() for length in lengths]

    count = len(lengths)
    return from_mapping(
        {
            "clean": rows(),
            "corrupt": rows(),
            "answer": list(range(10, 10 + count)),
            "wrong": list(range(40, 40 + count)),
            "positions": {
                "END": [length - 1 for length in lengths],
                "S2": [length - 3 for length in lengths],
                "S1": [length - 5 for length in lengths],
                "IO": [length - 6 for length in lengths],
            },
            "groups": [7 if length == max(lengths) else 3 for length in lengths],
        },
        "made up",
        "0" * 64,
    )


def padded_left(given: PromptPairs) -> PromptPairs:
    """The same prompts with their padding in front."""
    lengths = given.clean.mask.sum(-1)
    shift = given.clean.tokens.shape[1] - lengths

    def turned(batch: TokenBatch) -> TokenBatch:
        rows = [batch.tokens[i, : int(length)].tolist() for i, length in enumerate(lengths)]
        return TokenBatch.of(rows, side="left")

    return replace(
        given,
        clean=turned(given.clean),
        corrupt=turned(given.corrupt),
        positions={name: at + shift for name, at in given.positions.items()},
        corrupt_positions={name: at + shift for name, at in given.corrupt_positions.items()},
    )


def measure(model: Any, data: Any, spec: Analysis) -> Result:
    """What the analysis of this spec finds."""
    return import_module(spec.module).run(model, data, None, None, spec)
