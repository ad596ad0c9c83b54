"""Scores of the same blocks in several ways, and how alike rankings are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata

from repro.analyses.influence.api import fit_factors, scores
from repro.analyses.influence_scores import factors_folder
from repro.analyses.influence_specs import InfluenceAnalysis
from repro.analyses.influence_study_specs import Variants
from repro.data.token_blocks import Blocks, TokenBlocks
from repro.models.language_model import LanguageModel
from repro.progress import progress
from repro.results import NamedArray
from repro.shards import Part


def score_table(
    model: LanguageModel, blocks: TokenBlocks, settings: InfluenceAnalysis, directory: Path | None,
    rows: Sequence[int] | None = None, queries: Blocks | None = None, parts: int = 1,
) -> np.ndarray:  # fmt: skip
    """Scores [query, train] of some training blocks (null: all); factors are of all, and kept with the"
    " run."""
    factors = fit_factors(model, blocks.train, settings, factors_folder(directory), None, parts)
    train = blocks.train if rows is None else blocks.train.rows(torch.tensor(list(rows)))
    store = None if directory is None else directory / "scores"
    return scores(model, factors, queries or blocks.query, train, settings, store).total.double().numpy()


def variant_scores(
    model: LanguageModel, blocks: TokenBlocks, spec: Variants, directory: Path | None, part: Part
) -> NamedArray:
    """Scores of all variants, [variant, query, train], for the training blocks of a part."""
    rows, found = part.of(range(len(blocks.train))), []
    with progress(len(spec.variants), "influence scores", "variants") as bar:
        for settings in spec.settings().values():
            found.append(score_table(model, blocks, settings, directory, rows, parts=part.count))
            bar.advance()
    values = np.stack(found)
    axes = {"variant": list(spec.variants), "query": values.shape[1], "train": len(rows)}
    return NamedArray(values, axes)


def spearman(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Rank correlation along the last axis, ties averaged; NaN where one side is constant."""
    one, other = (rankdata(side, axis=-1) for side in (left, right))
    one, other = (side - side.mean(-1, keepdims=True) for side in (one, other))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (one * other).sum(-1) / np.sqrt((one**2).sum(-1) * (other**2).sum(-1))
