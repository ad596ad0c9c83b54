"""Influence of training blocks on queries: pairwise, by module and token, and of each block on itself.

Source: Grosse et al. 2023, arXiv 2308.03296. Method: `repro/analyses/influence/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from repro.analyses import lm_inputs as lm
from repro.analyses.influence.api import Profile, fit_factors, scores, self_influence
from repro.analyses.influence.profile import STAGES
from repro.analyses.influence_specs import InfluenceAnalysis, InfluenceScores
from repro.data.token_blocks import TokenBlocks
from repro.errors import UserError
from repro.models.language_model import LanguageModel
from repro.results import NamedArray, Result
from repro.shards import FOLDER, WHOLE, Part, join

TIMES = ("stage_seconds", "stage_processor_seconds", "stage_calls")


def run(subject: Any, data: Any, record: Any, directory: Path | None, spec: InfluenceScores) -> Result:
    """Scores: positive where weight on a training block lowers a query's loss; nothing is normalised.

    Arrays: scores [query, train]; per_module [module, query, train]; per_token [query, train, position];
    self_influence [train]; of the profile stage_seconds (wall clock), stage_processor_seconds, stage_calls,
    stage_mean_seconds, stage_percent [stage]. Scalars: profile.total_seconds, profile.pairwise_share.
    """
    return merge([run_part(subject, data, directory, spec, WHOLE)], spec)


def run_part(subject: Any, data: Any, directory: Path | None, spec: InfluenceScores, part: Part) -> Result:
    """Scores of some of the training blocks. Factors are of all; processes with one folder share the fit."""
    model = lm.model_of(subject)
    blocks = blocks_of(model, data)
    rows = torch.tensor(part.of(range(len(blocks.train))))
    profile = Profile(directory)
    factors = fit_factors(model, blocks.train, spec, factors_folder(directory), profile, part.count)
    train = blocks.train.rows(rows)
    found = scores(
        model,
        factors,
        blocks.query,
        train,
        spec,
        None if directory is None else directory / "scores",
        profile,
    )
    queries: dict[str, Any] = {"query": len(found.total)}
    axes = {**queries, "train": len(rows)}
    arrays = {"scores": lm.array(found.total, axes)}
    if found.per_module is not None:
        arrays["per_module"] = lm.array(found.per_module, {"module": found.modules, **axes})
    if found.per_token is not None:
        arrays["per_token"] = lm.array(found.per_token, {**axes, "position": train.length})
    if spec.self_influence:
        own = self_influence(model, factors, train, spec, profile)
        arrays["self_influence"] = lm.array(own, {"train": len(rows)})
    arrays.update(_profile(profile))
    return Result({}, arrays, _notes(model, blocks, spec, len(found.modules)))


def merge(parts: Sequence[Result], spec: InfluenceScores) -> Result:
    """All training blocks beside each other, and the share of each stage in the time."""
    result = join(parts, "train", add=TIMES)
    seconds, calls = (result.arrays[name].values for name in ("stage_seconds", "stage_calls"))
    total = float(seconds.sum())
    stages: dict[str, Any] = {"stage": list(STAGES)}
    result.arrays["stage_mean_seconds"] = NamedArray(seconds / np.maximum(calls, 1), stages, "s")
    result.arrays["stage_percent"] = NamedArray(100 * seconds / max(total, 1e-12), stages, "%")
    result.scalars["profile.total_seconds"] = total
    result.scalars["profile.pairwise_share"] = float(seconds[STAGES.index("pairwise_score")]) / max(
        total, 1e-12
    )
    return result


def blocks_of(model: LanguageModel, data: Any) -> TokenBlocks:
    """The data's blocks as token ids of this model. Raises `UserError` for data without blocks."""
    if not hasattr(data, "blocks"):
        raise UserError("data: it needs blocks of text or token ids. Give data=token_blocks data.path=FILE")
    blocks: TokenBlocks = data.blocks(model.tokenizer)
    blocks.check_vocabulary(model.vocabulary)
    longest = max(blocks.train.length, blocks.query.length)
    if longest > model.max_positions:
        raise UserError(
            f"data: blocks of {longest} tokens: the model takes at most {model.max_positions}. Give shorter"
        )
    return blocks


def factors_folder(directory: Path | None) -> Path | None:
    """Where the factors of a run lie: in its own folder, one for all its shards."""
    if directory is None:
        return None
    return (directory.parent.parent if directory.parent.name == FOLDER else directory) / "factors"


def _profile(profile: Profile) -> dict[str, NamedArray]:
    stages: dict[str, Any] = {"stage": list(STAGES)}
    kept = dict(zip(TIMES, (profile.seconds, profile.processor, profile.calls), strict=True))
    return {
        name: NamedArray(
            np.array([values[stage] for stage in STAGES], dtype=np.float64),
            stages,
            "1" if "calls" in name else "s",
        )
        for name, values in kept.items()
    }


def _notes(
    model: LanguageModel, blocks: TokenBlocks, spec: InfluenceAnalysis, modules: int
) -> dict[str, str]:
    damping = "0.1 x mean eigenvalue" if spec.damping == "heuristic" else f"{spec.damping:g}"
    how = f"{spec.strategy}, {spec.fisher} labels, damping {damping}, {spec.dtype}"
    sizes = f"{len(blocks.train)} x {blocks.train.length} tokens, {len(blocks.query)} queries"
    return {"method": f"{how}, {modules} modules", "blocks": f"{blocks.source}: {sizes}"}
