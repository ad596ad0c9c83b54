"""How changes of outputs travel up the residual stream while all heads are frozen.

Axes: `n` cases (senders or groups of them, sorted by when they enter), `B` prompts, `P` columns, `d` width.
Nothing here moves between positions, so a column of a prompt is a row of its own. Changes are kept as
differences from the clean run, and formed as stream + change before a norm, never from the norm's parts.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from repro.interventions.path_patching_cache import Cached, post_norm
from repro.interventions.path_patching_nodes import Sender
from repro.models.language_model import LanguageModel, Layer

Some = tuple[Tensor, Tensor] | None  # which cases [k], and what they add [k, B, P, d]


class Entering(Protocol):
    """Changes of outputs. times: for each case, rising, when its first change enters (`Sender.enters`)."""

    times: list[int]

    def embedding(self) -> Some: ...

    def heads(self, layer: Layer) -> Some: ...

    def mlp(self, layer: Layer) -> Some: ...


class Sent:
    """The corrupt run's outputs of groups of senders in place of the clean run's."""

    def __init__(self, cached: Cached, columns: Tensor, groups: Sequence[Sequence[Sender]]) -> None:
        self._cached, self._columns, self._groups = cached, columns, groups
        self.times = [min(one.enters for one in group) for group in groups]

    def embedding(self) -> Some:
        return self._whole("resid_pre", 0, Sender(-1))

    def mlp(self, layer: Layer) -> Some:
        return self._whole("mlp_out", layer.index, Sender(layer.index))

    def heads(self, layer: Layer) -> Some:
        here = [
            (case, one.head)
            for case, group in enumerate(self._groups)
            for one in group
            if one.layer == layer.index and one.head is not None
        ]
        if not here:
            return None
        cases, heads = (
            {item: i for i, item in enumerate(sorted(set(part)))} for part in zip(*here, strict=True)
        )
        z = self._difference("z", layer.index)
        written = layer.head_out(z[:, :, list(heads)], list(heads))
        chosen = written.new_zeros(len(cases), len(heads))
        for case, head in here:
            chosen[cases[case], heads[head]] = 1
        index = torch.tensor(list(cases), device=z.device)
        return index, torch.einsum("nh,bphd->nbpd", chosen, written)

    def _whole(self, site: str, layer: int, sender: Sender) -> Some:
        cases = [case for case, group in enumerate(self._groups) if sender in group]
        if not cases:
            return None
        value = self._difference(site, layer)
        return torch.tensor(cases, device=value.device), value.expand(len(cases), *value.shape)

    def _difference(self, site: str, layer: int) -> Tensor:
        return self._cached.corrupt[site, layer] - self._cached.at(site, layer, self._columns)


class Written:
    """New outputs of receivers: what the first cases add in each layer, {layer: [n, B, P, d]}."""

    def __init__(self, changes: dict[int, Tensor], cases: int) -> None:
        self._changes = changes
        starts = {layer: len(change) for layer, change in changes.items()}
        never = 2**30
        self.times = [
            min((2 * layer for layer, n in starts.items() if case < n), default=never)
            for case in range(cases)
        ]

    def embedding(self) -> Some:
        return None

    def mlp(self, layer: Layer) -> Some:
        return None

    def heads(self, layer: Layer) -> Some:
        change = self._changes.get(layer.index)
        return None if change is None else (torch.arange(len(change), device=change.device), change)


@torch.no_grad()
def propagate(
    model: LanguageModel, cached: Cached, entering: Entering, columns: Tensor, stops: Sequence[int],
    recompute: bool,
) -> Iterator[tuple[int, Tensor]]:  # fmt: skip
    """Change [n, B, P, d] of the stream at the input of each layer of `stops` (rising; the depth is the end).

    n: the cases that have entered by then; for all others the change is exactly 0. recompute: MLPs see the
    change and carry it on; else their outputs stay those of the clean run. Norms are always recomputed.
    What is yielded is changed afterwards.
    """
    cases, (rows, count) = len(entering.times), columns.shape
    delta = torch.zeros(cases, rows, count, model.width, dtype=model.dtype, device=model.device)
    _add(delta, entering.embedding())
    start = max(entering.times[0] // 2, 0)
    for index in range(model.depth + 1):
        delta = delta.to(model.layers[min(index, model.depth - 1)].output_matrix.device)
        if index in stops:
            yield index, delta[: bisect_right(entering.times, 2 * index - 1)]
        if index >= stops[-1]:
            return
        if index >= start:
            _advance(model, model.layers[index], cached, entering, delta, columns, recompute)


def _advance(
    model: LanguageModel, layer: Layer, cached: Cached, entering: Entering, delta: Tensor, columns: Tensor,
    recompute: bool,
) -> None:  # fmt: skip
    """From the input of a block to the next one's, in place."""
    before, after = (bisect_right(entering.times, 2 * layer.index + shift) for shift in (-1, 0))
    if post_norm(layer):
        _advance_post_norm(model, layer, cached, entering, delta, columns, recompute)
        return
    # In a parallel block the MLP reads the block's input, so heads of its own layer do not reach it.
    live, stream = (after, "resid_mid") if layer.reads_mid else (before, "resid_pre")
    heads, sent = entering.heads(layer), entering.mlp(layer)
    if layer.reads_mid:
        _add(delta, heads)
    change = _mlp_change(layer, cached, stream, delta[:live], columns) if recompute and live else None
    if not layer.reads_mid:
        _add(delta, heads)
    if change is not None:
        if sent is not None:  # an MLP that is a sender itself writes what was sent, and nothing else
            change[sent[0][sent[0] < live]] = 0
        delta[:live] += change
    _add(delta, sent)


def _mlp_change(layer: Layer, cached: Cached, stream: str, delta: Tensor, columns: Tensor) -> Tensor:
    index = layer.index
    new = layer.mlp(layer.norm2(cached.at(stream, index, columns) + delta))
    return cached.held("mlp_out", index, columns, new) - cached.at("mlp_out", index, columns)


def _advance_post_norm(
    model: LanguageModel, layer: Layer, cached: Cached, entering: Entering, delta: Tensor, columns: Tensor,
    recompute: bool,
) -> None:  # fmt: skip
    """The same where norms stand behind the sums: even frozen outputs are normalised anew with the change."""
    index, last = layer.index, model.depth - 1
    live = bisect_right(entering.times, 2 * index + 1)
    if not live:
        return
    _add(delta, entering.heads(layer))
    middle = layer.first_norm(
        cached.at("resid_pre", index, columns) + cached.at("attn_out", index, columns) + delta[:live]
    )
    written = layer.mlp(middle) if recompute else cached.at("mlp_out", index, columns).expand_as(middle)
    written = cached.held("mlp_out", index, columns, written)
    written = _replaced(written, entering.mlp(layer), cached.at("mlp_out", index, columns))
    after = (
        cached.at("resid_post", last, columns)
        if index == last
        else cached.at("resid_pre", index + 1, columns)
    )
    delta[:live] = layer.second_norm(middle + written) - after


def _replaced(written: Tensor, some: Some, clean: Tensor) -> Tensor:
    if some is None:
        return written
    index, change = some
    return written.index_copy(0, index, clean + change)


def _add(delta: Tensor, some: Some) -> None:
    if some is not None:
        delta.index_add_(0, some[0].to(delta.device), some[1].to(delta.device))
