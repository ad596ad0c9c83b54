"""Where a path patching sweep acts, in columns: receivers at their positions, step by step to the logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from repro.data.token_pairs import PromptPairs
from repro.errors import UserError
from repro.interventions.path_patching_nodes import ALL, Receiver
from repro.models.language_model import LanguageModel, Layer

Mlps = Literal["recompute", "freeze"]
Downstream = Literal["recompute", "filter"]


@dataclass(frozen=True, eq=False)
class Inputs:
    """The receivers of one layer and letter. heads: R of them; active [B, P, R]: at which columns each is."""

    heads: list[int]
    active: Tensor


@dataclass(frozen=True, eq=False)
class Stage:
    """One step of a path. columns [B, P]: where it receives; inputs: by layer and letter; layers, rising.

    No inputs: the residual stream after the last block receives.
    """

    columns: Tensor
    inputs: dict[tuple[int, str], Inputs]
    layers: list[int]


@dataclass(frozen=True, eq=False)
class Plan:
    """Stages up to the logits at `end` [B]; source [B, P]: where the first stage's columns are in the
    corrupt prompts."""

    stages: list[Stage]
    end: Tensor
    source: Tensor
    mlps: Mlps
    downstream: Downstream

    @property
    def target(self) -> Stage:
        """The logits."""
        return Stage(self.end[:, None], {}, [])


def plan(
    model: LanguageModel, pairs: PromptPairs, stages: Sequence[Sequence[Receiver]], positions: str,
    mlps: Mlps, downstream: Downstream, end: str = "END",
) -> Plan:  # fmt: skip
    """Receivers as columns. Raises `UserError` for heads and positions that do not exist."""
    for name, value, valid in (
        ("mlps", mlps, ("recompute", "freeze")), ("downstream", downstream, ("recompute", "filter")),
    ):  # fmt: skip
        if value not in valid:
            raise UserError(f"{name}: got {value!r}. Valid choices: {', '.join(valid)}")
    for receivers in stages:
        for one in receivers:
            model.check_head(one.layer, one.head, f"receiver {one}", kv=one.letter in ("k", "v"))
        if not receivers:
            raise UserError("receivers: an empty list. Write 'logits' or a list like [9.9.q,9.6.q]")
    _check_names(pairs, {one.position or positions for stage in stages for one in stage} | {end, positions})
    if not stages and positions not in (end, ALL):
        raise UserError(
            f"positions: got {positions}, but the logits are read at {end}, where nothing sent elsewhere"
            f" arrives while heads are frozen. Give positions={end}, or receivers such as [9.9.k]"
        )
    at_end = pairs.positions[end]
    steps = [_stage(pairs, receivers, positions) for receivers in stages]
    first = [one.position or positions for one in stages[0]] if stages else [end]
    return Plan(steps, at_end, _source(pairs, first), mlps, downstream)


def span(low: Tensor, high: Tensor) -> Tensor:
    """Neighbouring columns [B, W] from `low` to `high` [B] at least; W is the same in all rows."""
    low = torch.minimum(low, high)
    width = int((high - low).max()) + 1
    first = (high - width + 1).clamp(min=0)
    return first[:, None] + torch.arange(width, device=low.device)


def groups_of(layer: Layer, inputs: dict[str, Inputs]) -> list[int]:
    """The query heads whose output changes with these inputs of a layer: of k and v, all that share them."""
    share = layer.heads // layer.kv_heads
    found = set(inputs["q"].heads if "q" in inputs else [])
    for letter in ("k", "v"):
        for head in inputs[letter].heads if letter in inputs else []:
            found |= set(range(head * share, (head + 1) * share))
    return sorted(found)


def at_layer(stage: Stage, layer: int) -> dict[str, Inputs]:
    """The inputs of one layer, by letter."""
    return {letter: inputs for (index, letter), inputs in stage.inputs.items() if index == layer}


def _stage(pairs: PromptPairs, receivers: Sequence[Receiver], default: str) -> Stage:
    names = list(dict.fromkeys(one.position or default for one in receivers))
    columns = _columns(pairs, names)
    grouped: dict[tuple[int, str], dict[int, Tensor]] = {}
    for one in receivers:
        heads = grouped.setdefault((one.layer, one.letter), {})
        name = one.position or default
        here = torch.ones_like(columns) > 0 if name == ALL else columns == pairs.positions[name][:, None]
        heads[one.head] = heads.get(one.head, torch.zeros_like(here)) | here
    inputs = {
        key: Inputs(sorted(heads), torch.stack([heads[head] for head in sorted(heads)], dim=-1))
        for key, heads in sorted(grouped.items())
    }
    return Stage(columns, inputs, sorted({layer for layer, _ in inputs}))


def _columns(pairs: PromptPairs, names: Sequence[str], corrupt: bool = False) -> Tensor:
    batch, positions = (pairs.corrupt, pairs.corrupt_positions) if corrupt else (pairs.clean, pairs.positions)
    if ALL in names:
        rows, length = batch.tokens.shape
        return torch.arange(length, device=batch.tokens.device).expand(rows, length)
    return torch.stack([positions[name] for name in names], dim=-1)


def _source(pairs: PromptPairs, names: Sequence[str]) -> Tensor:
    names = list(dict.fromkeys(names))
    if ALL in names:
        pairs.require_aligned([name for name in names if name != ALL])
        if not torch.equal(pairs.clean.mask, pairs.corrupt.mask):
            raise UserError("positions=all: clean and corrupt prompts must be padded on the same side")
        return _columns(pairs, names)
    here, there = _columns(pairs, names), _columns(pairs, names, corrupt=True)
    same_here = here[:, :, None] == here[:, None, :]
    clash = same_here & (there[:, :, None] != there[:, None, :])
    if clash.any():
        row, one, other = clash.nonzero()[0].tolist()
        raise UserError(
            f"positions {names[one]} and {names[other]}: one column in clean prompt {row}, but two in the"
            " corrupt one, so it is not clear what to put there. Receive at one of them only"
        )
    return there


def _check_names(pairs: PromptPairs, names: set[str]) -> None:
    for name in sorted(names - {ALL}):
        for batch, found in ((pairs.clean, pairs.positions), (pairs.corrupt, pairs.corrupt_positions)):
            if name not in found:
                raise UserError(
                    f"positions: {name!r} is not in the data. Valid choices: {', '.join(found)}, or"
                    f" {ALL} for all positions"
                )
            rows, length = batch.tokens.shape
            where = found[name]
            if where.shape != (rows,) or int(where.min()) < 0 or int(where.max()) >= length:
                raise UserError(
                    f"positions: {name} must be one column from 0 to {length - 1} for each of {rows} prompts"
                )
            padding = ~batch.mask[torch.arange(rows, device=where.device), where]
            if padding.any():
                row = int(padding.nonzero()[0])
                raise UserError(
                    f"positions: {name} is on padding in prompt {row}. Give columns of the padded batch"
                )
