"""Feed chosen heads from other prompts, and see what the model then says and where its heads look.

If a head carries a known feature, taking its activations from prompts in which the feature is changed must
change the answer in a known way. Source: Wang et al. 2022, arXiv 2211.00593, section 3.2 and appendix A.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repro.analyses import lm_inputs as lm
from repro.analyses.logit_difference import attention_reads
from repro.analyses.moving_specs import Feed, MovingPieces
from repro.data.token_pairs import PromptPairs
from repro.errors import UserError
from repro.interventions.lm_edits import At, Edit, Read, Replace
from repro.interventions.lm_run import run as forward
from repro.models.language_model import LanguageModel
from repro.progress import progress
from repro.results import Result

ORIGINAL = "original"


def run(subject: Any, data: Any, record: Any, directory: Path | None, spec: MovingPieces) -> Result:
    """Run the clean prompts once as they are (piece `original`) and once for every piece.

    Arrays: logit_difference [piece, prompt]; attention [piece, key, head] from `spec.query` of the watched
    heads, means over prompts. Scalars: <piece>.logit_difference, .logit_difference.se, .ratio (to the
    original), .attention.<key> (mean over watched heads), .attention_ratio.<key>; with `fit`: fit.<name> of
    every column and fit.error (mean absolute error, as a share of the original logit difference).
    """
    model = lm.model_of(subject)
    pairs = lm.pairs_of(model, data)
    keys = lm.named_positions(pairs, spec.keys, "analysis.keys")
    sources = {name: [_source(model, data, feed) for feed in feeds] for name, feeds in spec.pieces.items()}
    _check(model, pairs, spec, sources)
    watched = [_parse(model, head, "analysis.watch") for head in spec.watch]
    found: dict[str, tuple[Tensor, Tensor]] = {}
    with progress(1 + len(spec.pieces), "pieces") as bar:
        for name, feeds in {ORIGINAL: [], **spec.pieces}.items():
            parts = [
                _one(model, pairs, feeds, sources.get(name, []), watched, keys, spec, rows)
                for rows in lm.chunks(len(pairs), spec.batch)
            ]
            found[name] = (
                torch.cat([part[0] for part in parts]),
                torch.cat([part[1] for part in parts], dim=-1),
            )
            bar.advance(1)
    return _result(found, spec, keys)


def _one(
    model: LanguageModel, pairs: PromptPairs, feeds: list[Feed], sources: list[PromptPairs],
    watched: list[tuple[int, int]], keys: list[str], spec: MovingPieces, rows: slice,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Logit differences [B] and attention of the watched heads [key, head, B] of some rows."""
    here = lm.part_of(pairs, rows)
    edits: list[Edit] = []
    for feed, source in zip(feeds, sources, strict=True):
        edits += _edits(model, here, feed, lm.part_of(source, rows))
    layers = sorted({layer for layer, _ in watched})
    every = attention_reads(model, here.clean, dict(here.positions), spec.query, keys) if watched else []
    reads = {layer: every[layer] for layer in layers}
    end = here.position(lm.ANSWER)
    final = Read(At("resid_post", model.depth - 1, positions=end))
    ran = forward(model, here.clean, edits, [*reads.values(), final], logits=None)
    difference = lm.logit_difference(model, ran[final][:, 0], lm.answer_columns(here), end)
    if not torch.isfinite(difference).all():
        raise UserError(f"logits are not finite (dtype {model.dtype}). Give model.dtype=float32")
    looks = [ran[reads[layer]][:, head].cpu() for layer, head in watched]
    attention = torch.stack(looks, dim=1) if looks else torch.zeros(len(keys), 0, len(here))
    return difference.cpu(), attention


def _edits(model: LanguageModel, here: PromptPairs, feed: Feed, source: PromptPairs) -> list[Edit]:
    """One replacement a layer: what the heads have in the source run, at the same named position."""
    by_layer: dict[int, list[int]] = {}
    for layer, head in (_parse(model, one, "analysis.pieces", feed.site in ("k", "v")) for one in feed.heads):
        by_layer.setdefault(layer, []).append(head)
    there = {
        layer: Read(At(feed.site, layer, heads, _column(source.corrupt_positions, feed.at)))
        for layer, heads in by_layer.items()
    }
    ran = forward(model, source.corrupt, reads=list(there.values()), logits=None)
    return [
        Replace(At(feed.site, layer, heads, _column(here.positions, feed.at)), ran[there[layer]])
        for layer, heads in by_layer.items()
    ]


def _source(model: LanguageModel, data: Any, feed: Feed) -> PromptPairs:
    """The pairs whose corrupt prompts feed these heads."""
    if feed.chain is None:
        return lm.pairs_of(model, data)
    if not hasattr(data, "flipped"):
        raise UserError(
            "analysis.pieces: chain makes prompts by flips, which plain token ids do not have. Leave it out:"
            " then the corrupt prompts of the file are the source"
        )
    pairs: PromptPairs = data.pairs(model.tokenizer, chain=feed.chain)
    pairs.check_vocabulary(model.vocabulary)
    return pairs


def _check(
    model: LanguageModel, pairs: PromptPairs, spec: MovingPieces, sources: Mapping[str, list[PromptPairs]]
) -> None:
    """Refuse heads and positions that do not exist before anything runs."""
    for name, feeds in spec.pieces.items():
        for feed, source in zip(feeds, sources[name], strict=True):
            for head in feed.heads:
                _parse(model, head, f"analysis.pieces.{name}", feed.site in ("k", "v"))
            _column(pairs.positions, feed.at)
            _column(source.corrupt_positions, feed.at)


def _parse(model: LanguageModel, head: str, where: str, kv: bool = False) -> tuple[int, int]:
    layer, index = (int(part) for part in head.split("."))
    model.check_head(layer, index, where, kv)
    return layer, index


def _column(positions: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in positions:
        raise UserError(f"position: got {name!r}. These prompts have: {', '.join(positions)}")
    return positions[name]


def _result(found: Mapping[str, tuple[Tensor, Tensor]], spec: MovingPieces, keys: list[str]) -> Result:
    scalars: dict[str, float] = {}
    original = float(found[ORIGINAL][0].mean())
    looks = found[ORIGINAL][1].double().mean(-1)
    for name, (difference, attention) in found.items():
        mean = lm.summary("x", difference)
        scalars[f"{name}.logit_difference"] = mean["x.mean"]
        scalars[f"{name}.logit_difference.se"] = mean["x.se"]
        scalars[f"{name}.ratio"] = mean["x.mean"] / original
        for i, key in enumerate(keys if spec.watch else []):
            at, before = float(attention[i].double().mean()), float(looks[i].mean())
            scalars[f"{name}.attention.{key}"] = at
            scalars[f"{name}.attention_ratio.{key}"] = at / before if before else float("nan")
    scalars |= _fit(scalars, spec)
    names = list(found)
    prompts = len(found[ORIGINAL][0])
    arrays = {
        "logit_difference": lm.array(
            torch.stack([found[name][0] for name in names]), {"piece": names, "prompt": prompts}, "logit"
        )
    }
    if spec.watch:
        stacked = torch.stack([found[name][1].double().mean(-1) for name in names])
        arrays["attention"] = lm.array(stacked, {"piece": names, "key": keys, "head": list(spec.watch)})
    return Result(scalars, arrays)


def _fit(scalars: Mapping[str, float], spec: MovingPieces) -> dict[str, float]:
    """Least squares of the pieces' logit differences on the signals they carry, without a constant."""
    if not spec.fit:
        return {}
    columns = list(next(iter(spec.fit.values())))
    design = np.array([[row[column] for column in columns] for row in spec.fit.values()], dtype=float)
    measured = np.array([scalars[f"{name}.logit_difference"] for name in spec.fit])
    weights, *_ = np.linalg.lstsq(design, measured, rcond=None)
    error = np.abs(design @ weights - measured).mean() / abs(scalars[f"{ORIGINAL}.logit_difference"])
    return {
        **{f"fit.{column}": float(w) for column, w in zip(columns, weights, strict=True)},
        "fit.error": error,
    }
