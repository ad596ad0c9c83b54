"""Whether influence scores predict what training on random halves of the blocks does.

Source: Park et al. 2023 (TRAK), arXiv 2303.14186, for the linear datamodeling score.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from repro.analyses import lm_inputs as lm
from repro.analyses.influence_scores import blocks_of
from repro.analyses.influence_study_specs import DatamodelingScore
from repro.analyses.influence_variants import spearman, variant_scores
from repro.analyses.retrained import origin_of, retrained_losses
from repro.data import array_files
from repro.data.token_blocks import TokenBlocks
from repro.errors import NotApplicable, UserError
from repro.results import NamedArray, Result
from repro.shards import WHOLE, Part, join
from repro.training.retraining import Retraining


def run(subject: Any, data: Any, record: Any, directory: Path | None, spec: DatamodelingScore) -> Result:
    """Spearman correlation over masks of predicted and measured losses of each query, mean over queries.

    The prediction of a mask is minus the sum of the scores of the blocks it keeps.
    Arrays: scores [variant, query, train]; masks [mask, train] of 0 and 1; losses [mask, repeat, query],
    summed over a block, of own retrainings; mean_losses [mask, query]; predictions [variant, mask, query];
    lds [variant, query]; lds_mean, lds_error (standard error over queries) [variant].
    Scalars: lds.<variant>; split_half, the correlation of the losses of odd and even repeats, which no
    prediction can be expected to exceed (NaN for one repeat); masks.kept_least, masks.kept_most (blocks),
    masks.distinct; perplexity.
    """
    return merge([run_part(subject, data, directory, spec, WHOLE)], spec)


def run_part(subject: Any, data: Any, directory: Path | None, spec: DatamodelingScore, part: Part) -> Result:
    """Some of the retrainings, and the scores of some of the training blocks."""
    model = lm.model_of(subject)
    blocks = blocks_of(model, data)
    given = _from_files(spec, blocks) if spec.from_files else None
    if given is None:  # refused before scores are computed
        spec = spec.sized(bool(origin_of(model, blocks).spec.embedded))
    masks = drawn(len(blocks.train), spec) if given is None else given[0]
    arrays = {
        "scores": variant_scores(model, blocks, spec, directory, part),
        "masks": NamedArray(masks.astype(np.int8), {"mask": len(masks), "train": len(blocks.train)}),
    }
    if given is None:
        arrays["losses"] = retrained_losses(model, blocks, retrainings(masks, int(spec.repeats)), part)
    else:
        axes: dict[str, Any] = {"mask": len(masks), "query": len(blocks.query)}
        arrays["mean_losses"] = NamedArray(given[1].astype(np.float64), axes, "nat")
    notes = {"blocks": f"{blocks.source}, {blocks.query.length} tokens"}
    return Result({"predicted": float(blocks.query.length - 1)}, arrays, notes)


def merge(parts: Sequence[Result], spec: DatamodelingScore) -> Result:
    """All retrainings and scores, and how well the one predicts the other."""
    scores = join([_only(part, "scores") for part in parts], "train").arrays["scores"]
    result = join([_only(part, "masks", "losses", "mean_losses") for part in parts], "retraining")
    arrays, predicted = result.arrays, parts[0].scalars["predicted"]
    masks, variants = arrays["masks"].values, list(spec.variants)
    arrays["scores"] = scores
    if "losses" in arrays:
        flat = arrays["losses"].values
        losses = flat.reshape(len(masks), -1, flat.shape[1])
        axes: dict[str, Any] = dict(zip(("mask", "repeat", "query"), losses.shape, strict=True))
        arrays["losses"] = NamedArray(losses, axes, "nat")
        arrays["mean_losses"] = NamedArray(
            losses.mean(1), {"mask": len(masks), "query": axes["query"]}, "nat"
        )
        result.scalars["split_half"] = _split_half(losses)
    measured = arrays["mean_losses"].values
    predictions = -np.einsum("mn,vqn->vmq", masks.astype(np.float64), scores.values)
    found = spearman(predictions.swapaxes(1, 2), measured.T)
    named: dict[str, Any] = {"variant": variants}
    queries = {"query": measured.shape[1]}
    arrays["predictions"] = NamedArray(predictions, {**named, "mask": len(masks), **queries}, "nat")
    arrays["lds"] = NamedArray(found, {**named, **queries})
    arrays["lds_mean"] = NamedArray(found.mean(1), named)
    arrays["lds_error"] = NamedArray(found.std(1, ddof=1) / np.sqrt(found.shape[1]), named)
    result.scalars.update(
        {f"lds.{name}": float(value) for name, value in zip(variants, found.mean(1), strict=True)}
    )
    result.scalars.update(
        {
            "masks.kept_least": float(masks.sum(1).min()),
            "masks.kept_most": float(masks.sum(1).max()),
            "masks.kept_share": float(masks.mean()),
            "masks.distinct": float(len(np.unique(masks, axis=0)) / len(masks)),
            "perplexity": float(np.exp(measured.mean() / predicted)),
        }
    )
    return result


def drawn(blocks: int, spec: DatamodelingScore) -> np.ndarray:
    """Masks [mask, train], each with the same number of ones, uniform, all different."""
    random, kept = np.random.default_rng(spec.mask_seed), round(spec.share * blocks)
    wanted = int(spec.masks)
    found: dict[bytes, np.ndarray] = {}
    for _ in range(100 * wanted):
        mask = np.zeros(blocks, np.int8)
        mask[random.permutation(blocks)[:kept]] = 1
        found.setdefault(mask.tobytes(), mask)
        if len(found) == wanted:
            return np.stack(list(found.values()))
    raise UserError(
        f"analysis.masks: {blocks} training blocks have no {spec.masks} different masks with {kept} of them."
        " Give fewer masks or more blocks"
    )


def retrainings(masks: np.ndarray, repeats: int) -> list[Retraining]:
    """Of every mask so many, one mask after the other; each has a seed of its own."""
    return [
        Retraining(tuple(np.flatnonzero(mask).tolist()), number * repeats + repeat)
        for number, mask in enumerate(masks)
        for repeat in range(repeats)
    ]


def _from_files(spec: DatamodelingScore, blocks: TokenBlocks) -> tuple[np.ndarray, np.ndarray]:
    if spec.masks_path is None or spec.losses_path is None:
        raise NotApplicable(
            "masks and losses of others are needed: analysis.masks_path=masks.pt"
            " analysis.losses_path=losses.pt (kronfluence, examples/wikitext/files)"
        )
    masks = array_files.read(spec.masks_path, "analysis.masks_path")
    losses = array_files.read(spec.losses_path, "analysis.losses_path")
    expected = ((len(masks), len(blocks.train)), (len(masks), len(blocks.query)))
    if (masks.shape, losses.shape) != expected or len(masks) < 3:
        raise UserError(
            f"analysis.masks_path, analysis.losses_path: expected [mask, {len(blocks.train)} training"
            f" blocks] and [mask, {len(blocks.query)} queries], at least 3 masks; got {masks.shape} and"
            f" {losses.shape}. They must be of this data"
        )
    if not np.isin(masks, (0, 1)).all() or not np.isfinite(losses).all():
        raise UserError("analysis.masks_path, analysis.losses_path: masks are 0 and 1, losses finite numbers")
    return masks, losses


def _only(part: Result, *names: str) -> Result:
    return Result({}, {name: part.arrays[name] for name in names if name in part.arrays}, dict(part.notes))


def _split_half(losses: np.ndarray) -> float:
    """losses: [mask, repeat, query]."""
    if losses.shape[1] < 2:
        return float("nan")
    return float(spearman(losses[:, ::2].mean(1).T, losses[:, 1::2].mean(1).T).mean())
