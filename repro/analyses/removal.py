"""What is lost when the training blocks with the largest influence are left out.

Source: counterfactual evaluation of kronfluence's examples/wikitext.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from repro.analyses import lm_inputs as lm
from repro.analyses.influence_scores import blocks_of
from repro.analyses.influence_specs import InfluenceAnalysis
from repro.analyses.influence_study_specs import OWN, Removal
from repro.analyses.influence_variants import score_table
from repro.analyses.retrained import origin_of, retrained_losses
from repro.data.token_blocks import TokenBlocks
from repro.errors import UserError
from repro.models.language_model import LanguageModel
from repro.results import NamedArray, Result
from repro.shards import WHOLE, Part, join
from repro.training.retraining import Retraining


def run(subject: Any, data: Any, record: Any, directory: Path | None, spec: Removal) -> Result:
    """Perplexity of the first queries after training without the blocks that matter most to their sum.

    Arrays: order [curve, train], blocks from the first to go; losses [retraining, query], summed over a
    block; perplexity [curve, removed, repeat]; perplexity_mean, perplexity_low, perplexity_high [curve,
    removed], the latter two the mean minus and plus a standard deviation over repeats; rise [curve, removed]
    of the mean. Scalars: rise.<curve>.<removed>.
    """
    return merge([run_part(subject, data, directory, spec, WHOLE)], spec)


def run_part(subject: Any, data: Any, directory: Path | None, spec: Removal, part: Part) -> Result:
    """Some of the retrainings, and the order in which blocks go."""
    model = lm.model_of(subject)
    blocks = blocks_of(model, data)
    steps = spec.steps(bool(origin_of(model, blocks).spec.embedded))
    count, most = len(blocks.train), steps[-1]
    if most >= count:
        raise UserError(f"analysis.removed: at most {count - 1} of {count} training blocks; got {most}")
    order = np.stack([*_ranked(model, blocks, spec, directory), _random(count, spec)])
    curves: dict[str, Any] = {"curve": spec.curves, "train": count}
    numbers: dict[str, Any] = {"removed": steps}
    arrays = {
        "order": NamedArray(order, curves),
        "steps": NamedArray(np.array(steps), numbers, "blocks"),
        "losses": retrained_losses(model, blocks, retrainings(order, steps, spec.repeats), part),
    }
    return Result({"predicted": float(blocks.query.length - 1)}, arrays, {"blocks": blocks.source})


def merge(parts: Sequence[Result], spec: Removal) -> Result:
    """Curves of perplexity."""
    result = join(parts, "retraining")
    predicted = result.scalars.pop("predicted")
    mean_loss = result.arrays["losses"].values[:, : spec.first].mean(1) / predicted
    removed = [int(step) for step in result.arrays["steps"].values]
    points = mean_loss.reshape(-1, spec.repeats)
    curves, steps = len(spec.curves), len(removed) - 1
    start = np.broadcast_to(points[:1], (curves, spec.repeats))[:, None]
    found = np.exp(np.concatenate([start, points[1:].reshape(curves, steps, spec.repeats)], axis=1))
    axes: dict[str, Any] = {"curve": spec.curves, "removed": removed}
    mean, spread = found.mean(-1), found.std(-1, ddof=1) if spec.repeats > 1 else np.zeros(found.shape[:2])
    arrays = result.arrays
    arrays["perplexity"] = NamedArray(found, {**axes, "repeat": spec.repeats})
    arrays["perplexity_mean"] = NamedArray(mean, axes)
    arrays["perplexity_low"] = NamedArray(mean - spread, axes)
    arrays["perplexity_high"] = NamedArray(mean + spread, axes)
    arrays["rise"] = NamedArray(mean - mean[:, :1], axes)
    for curve, rises in zip(spec.curves, arrays["rise"].values, strict=True):
        result.scalars.update(
            {f"rise.{curve}.{step}": float(rise) for step, rise in zip(removed, rises, strict=True)}
        )
        result.scalars[f"rise.{curve}.last"] = float(rises[-1])
    best = arrays["rise"].values[0, 1:] - arrays["rise"].values[1:, 1:].max(0)
    result.scalars["first_curve_leads_by"] = float(best.min())
    return result


def retrainings(order: np.ndarray, steps: Sequence[int], repeats: int) -> list[Retraining]:
    """With all blocks; then for every curve and step without so many of its first; of each the repeats."""
    lists = [order[0][:0], *(blocks[:removed] for blocks in order for removed in steps[1:])]
    kept = [tuple(sorted(set(range(order.shape[1])) - set(gone.tolist()))) for gone in lists]
    return [Retraining(blocks, seed) for blocks in kept for seed in range(repeats)]


def _ranked(
    model: LanguageModel, blocks: TokenBlocks, spec: Removal, directory: Path | None
) -> list[np.ndarray]:
    """For every strategy the training blocks, from the largest score for the sum of the first queries on."""
    queries = blocks.query.rows(slice(0, spec.first))
    own = {**spec.model_dump(include=OWN), "per_token": False, "per_module": False, "sum_queries": True}
    found = []
    for strategy in spec.strategies:
        settings = InfluenceAnalysis.parse({**own, "strategy": strategy}, "analysis")
        total = score_table(model, blocks, settings, directory, queries=queries)[0]
        found.append(np.argsort(-total, kind="stable"))
    return found


def _random(count: int, spec: Removal) -> np.ndarray:
    return np.random.default_rng(spec.random_seed).permutation(count)
