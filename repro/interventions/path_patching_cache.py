"""The two cached runs that serve all senders of a path patching sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from repro.data.token_pairs import PromptPairs
from repro.errors import UserError
from repro.interventions.lm_edits import At, Edit, Replace, put, take
from repro.interventions.lm_run import run
from repro.interventions.path_patching_nodes import Sender
from repro.interventions.path_patching_plan import Plan, Stage, span
from repro.models.language_model import LanguageModel, Layer

FULL = ("k", "v")  # kept at all positions: later positions see them


def post_norm(layer: Layer) -> bool:
    """Whether the block normalises what it has added, not what it reads (OPT 350M)."""
    return bool(getattr(layer, "post_norm", False))


@dataclass(frozen=True, eq=False)
class Cached:
    """What the clean run has at the columns that matter, and what the corrupt run sends there.

    found: (site, layer) -> [B, I, ..] at columns first .. first + I - 1, or at all columns for k and v.
    corrupt: (site, layer) -> [B, P, ..] at the first stage's columns. pinned: (z or mlp_out, layer) ->
    whether an edit of the model holds it [B, T, heads or 1].
    """

    pairs: PromptPairs
    first: Tensor
    found: dict[tuple[str, int], Tensor]
    corrupt: dict[tuple[str, int], Tensor]
    pinned: dict[tuple[str, int], Tensor]

    def at(self, site: str, layer: int, columns: Tensor) -> Tensor:
        """The clean run's value at columns [B, X]: [B, X, ..]."""
        value = self.found[site, layer]
        index = (columns if site in FULL else columns - self.first[:, None]).to(value.device)
        return value[torch.arange(len(value), device=value.device)[:, None], index]

    def position_ids(self, columns: Tensor) -> Tensor:
        return self.pairs.clean.position_ids.gather(1, columns)

    def held(self, site: str, layer: int, columns: Tensor, new: Tensor) -> Tensor:
        """`new` [n, B, X, ..], with the clean run's value where an edit of the model holds it."""
        pinned = self.pinned.get((site, layer))
        if pinned is None:
            return new
        rows = torch.arange(len(pinned), device=pinned.device)[:, None]
        return torch.where(pinned[rows, columns.to(pinned.device)], self.at(site, layer, columns), new)


def cache(
    model: LanguageModel, pairs: PromptPairs, plan: Plan, senders: Sequence[Sender], edits: Sequence[Edit]
) -> Cached:
    """Run clean and corrupt prompts once each, and keep what the sweep needs. Raises `UserError` if what
    comes out is not finite, or for edits whose effect a partial rerun could not keep up."""
    for edit in edits:
        if not isinstance(edit, Replace) or edit.at.site not in ("z", "mlp_out"):
            raise UserError(
                f"path patching: the model may be edited by replacing z or mlp_out; got {edit!r:.80}."
                " Use the definition (path_patching_definition) for other edits"
            )
    columns = hull(plan)
    clean_reads = [
        At(site, layer, positions=None if site in FULL else columns)
        for site, layer in sorted(_needed(model, plan, senders, edits))
    ]
    clean = run(model, pairs.clean, edits=edits, reads=clean_reads, logits=None)
    corrupt_reads = [
        At(site, layer, positions=plan.source) for site, layer in sorted(_sent(plan, senders, model.depth))
    ]
    other = run(model, pairs.corrupt, edits=edits, reads=corrupt_reads, logits=None)
    found = {(at.site, at.layer or 0): _there(model, at, clean[at]) for at in clean_reads}
    corrupt = {(at.site, at.layer or 0): _there(model, at, other[at]) for at in corrupt_reads}
    for kind, values in (("clean", found), ("corrupt", corrupt)):
        for (site, layer), value in values.items():
            if not torch.isfinite(value).all():
                raise UserError(
                    f"{kind} prompts: {site} of layer {layer} is not finite (dtype {model.dtype}). Give"
                    " model.dtype=float32, and check the checkpoint's weights"
                )
    return Cached(pairs, columns[:, 0], found, corrupt, _pinned(model, pairs, edits))


def _there(model: LanguageModel, at: At, value: Tensor) -> Tensor:
    """A value on the device of its layer's weights, if the model is spread over several."""
    return value.to(model.layers[at.layer or 0].output_matrix.device)


def hull(plan: Plan) -> Tensor:
    """Neighbouring columns [B, I] that hold all columns of a sweep."""
    parts = [stage.columns for stage in [*plan.stages, plan.target]]
    parts += [window(stage.columns, after.columns) for stage, after in _steps(plan)]
    together = torch.cat(parts, dim=1)
    return span(together.min(1).values, together.max(1).values)


def window(columns: Tensor, after: Tensor) -> Tensor:
    """Neighbouring columns [B, W] from the earliest of `columns` to the last of `after`."""
    return span(columns.min(1).values, after.max(1).values)


def _steps(plan: Plan) -> list[tuple[Stage, Stage]]:
    stages = [*plan.stages, plan.target]
    return list(zip(stages, stages[1:], strict=False))


def _sent(plan: Plan, senders: Sequence[Sender], depth: int) -> set[tuple[str, int]]:
    top = plan.stages[0].layers[-1] if plan.stages else depth
    sent = {
        ("z" if one.head is not None else "mlp_out", one.layer) for one in senders if 0 <= one.layer < top
    }
    return sent | ({("resid_pre", 0)} if any(one.layer < 0 for one in senders) else set())


def _needed(
    model: LanguageModel, plan: Plan, senders: Sequence[Sender], edits: Sequence[Edit]
) -> set[tuple[str, int]]:
    """(site, layer) of everything that the sweep takes from the clean run."""
    last, filtered = model.depth - 1, plan.downstream == "filter"
    needed = _sent(plan, senders, model.depth) | {("resid_post", last)}
    tops = [stage.layers[-1] for stage in plan.stages] + (
        [model.depth] if filtered or not plan.stages else []
    )
    for top, by_mlps in zip(tops, [plan.mlps] * max(len(plan.stages), 1) + ["freeze"], strict=False):
        for layer in model.layers[:top]:
            if post_norm(layer):
                after = ("resid_post", last) if layer.index == last else ("resid_pre", layer.index + 1)
                needed |= {(site, layer.index) for site in ("resid_pre", "attn_out", "mlp_out")}
                needed.add(after)
            elif by_mlps == "recompute":
                stream = "resid_mid" if layer.reads_mid else "resid_pre"
                needed |= {(stream, layer.index), ("mlp_out", layer.index)}
    for stage in plan.stages:
        needed |= {
            (s, layer) for layer in stage.layers for s in ("resid_pre", "q", "k", "v", "z", "attn_out")
        }
    if plan.stages and not filtered:
        lowest = plan.stages[-1].layers[0]
        needed |= {(site, layer) for layer in range(lowest, model.depth) for site in FULL}
    return needed | {(edit.at.site, edit.at.layer or 0) for edit in edits if isinstance(edit, Replace)}


def _pinned(model: LanguageModel, pairs: PromptPairs, edits: Sequence[Edit]) -> dict[tuple[str, int], Tensor]:
    pinned: dict[tuple[str, int], Tensor] = {}
    rows, length = pairs.clean.tokens.shape
    for edit in edits:
        assert isinstance(edit, Replace)
        key = edit.at.site, edit.at.layer or 0
        # A site's shape but for its last axis: one mark for each position, and each head if it has heads.
        heads = (model.heads,) if edit.at.site == "z" else ()
        before = pinned.get(key)
        if before is None:
            there = model.layers[key[1]].output_matrix.device
            before = torch.zeros(rows, length, *heads, 1, dtype=torch.bool, device=there)
        pinned[key] = put(before, edit.at, torch.ones_like(take(before, edit.at)))
    return pinned


def to_device(pairs: PromptPairs, device: torch.device) -> PromptPairs:
    """The same pairs, where the model takes its tokens."""
    return replace(
        pairs,
        clean=pairs.clean.to(device),
        corrupt=pairs.corrupt.to(device),
        answer=pairs.answer.to(device),
        wrong=pairs.wrong.to(device),
        positions={name: at.to(device) for name, at in pairs.positions.items()},
        corrupt_positions={name: at.to(device) for name, at in pairs.corrupt_positions.items()},
    )
