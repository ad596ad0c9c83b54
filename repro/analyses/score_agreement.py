"""How alike influence scores are that were computed in several ways.

Source: half-precision analysis of kronfluence's examples/wikitext (Spearman correlation over training
blocks).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from repro.analyses import lm_inputs as lm
from repro.analyses.influence_scores import blocks_of
from repro.analyses.influence_study_specs import ScoreAgreement
from repro.analyses.influence_variants import spearman, variant_scores
from repro.results import NamedArray, Result
from repro.shards import WHOLE, Part, join


def run(subject: Any, data: Any, record: Any, directory: Path | None, spec: ScoreAgreement) -> Result:
    """Rank correlation of each variant's scores with the reference's, over the training blocks, by query.

    Arrays: scores [variant, query, train]; agreement [variant, query]; agreement_mean [variant] over queries;
    between [variant, other], the mean for every pair. Scalars: agreement.<variant>, the same mean.
    """
    return merge([run_part(subject, data, directory, spec, WHOLE)], spec)


def run_part(subject: Any, data: Any, directory: Path | None, spec: ScoreAgreement, part: Part) -> Result:
    """Scores for some of the training blocks."""
    model = lm.model_of(subject)
    blocks = blocks_of(model, data)
    return Result({}, {"scores": variant_scores(model, blocks, spec, directory, part)}, {})


def merge(parts: Sequence[Result], spec: ScoreAgreement) -> Result:
    """All training blocks beside each other, and rank correlations over them."""
    result = join(parts, "train")
    names, values = list(spec.variants), result.arrays["scores"].values
    found = spearman(values, values[names.index(spec.reference)])
    between = np.array([spearman(values, one).mean(-1) for one in values])
    variants: dict[str, Any] = {"variant": names}
    result.arrays["agreement"] = NamedArray(found, {**variants, "query": values.shape[1]})
    result.arrays["agreement_mean"] = NamedArray(found.mean(-1), variants)
    pairs: dict[str, Any] = {**variants, "other": names}
    result.arrays["between"] = NamedArray(between, pairs)
    for name, value in zip(names, found.mean(-1), strict=True):
        result.scalars[f"agreement.{name}"] = float(value)
    return result
