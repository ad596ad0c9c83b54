"""A forward pass remembered, so that it can go on from any layer: what lies below an edit is not done again.

The library's own blocks are called again with the very arguments they got in the remembered pass, so a
restarted pass computes what a whole one with the same edits would. Variants of an edit are stacked as rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from repro.data.token_batch import TokenBatch
from repro.interventions.lm_edits import Add, At, Edit, Read, Replace, Scale, Transform, put, take
from repro.interventions.lm_run import Logits, Run, edited, run
from repro.models.language_model import LanguageModel

Ablation = Replace | Add | Scale | Transform


class Restart:
    """One run over a batch (`run`), and its continuations from a layer.

    edits (attention knockouts are not possible here) stay in force in every continuation.
    """

    def __init__(
        self,
        model: LanguageModel,
        batch: TokenBatch,
        edits: Sequence[Ablation] = (),
        reads: Sequence[Read | At] = (),
        logits: Logits = None,
    ) -> None:
        self._model, self._edits, self.rows = model, tuple(edits), len(batch)
        self._calls: list[tuple[Tensor, tuple, dict]] = []
        with ExitStack() as stack:
            for layer in model.layers:
                handle = layer.block.register_forward_pre_hook(self._note, with_kwargs=True)
                stack.callback(handle.remove)
            self.run: Run = run(model, batch, edits, reads, logits)

    def _note(self, module: Any, args: tuple, kwargs: dict) -> None:
        if args:
            self._calls.append((args[0].clone(), args[1:], kwargs))
            return
        rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        self._calls.append((kwargs["hidden_states"].clone(), (), rest))

    def entering(self, layer: int) -> Tensor:
        """What entered a block in the run, [B, T, d]."""
        return self._calls[layer][0]

    def block(self, layer: int, resid: Tensor) -> Tensor:
        """One block with the run's own arguments and without its edits; gradients can flow."""
        _, args, kwargs = self._calls[layer]
        out = self._model.layers[layer].block(resid, *args, **kwargs)
        return out[0] if isinstance(out, tuple) else out

    @torch.no_grad()
    def go(self, layer: int, edits: Sequence[Edit] = (), copies: int = 1, end: int | None = None) -> Tensor:
        """The last residual stream [copies * B, T, d] when the pass goes on from `layer` with more edits.

        Row c * B + b is row b of copy c. The further edits act on all these rows, after the run's own.
        end: the block to stop before; None goes through the last.
        """
        resid = _stacked(self._calls[layer][0], self.rows, copies)
        lasting = [edit if copies == 1 else _on_copies(edit, self.rows, copies) for edit in self._edits]
        with edited(self._model, [*lasting, *edits]):
            for block, (_, args, kwargs) in zip(
                self._model.layers[layer:end], self._calls[layer:end], strict=True
            ):
                out = block.block(
                    resid,
                    *(_stacked(value, self.rows, copies) for value in args),
                    **{name: _stacked(value, self.rows, copies) for name, value in kwargs.items()},
                )
                resid = out[0] if isinstance(out, tuple) else out
        return resid


def _stacked(value: Any, rows: int, copies: int) -> Any:
    """A block's argument for the batch `copies` times; what is shared by all rows stays as it is."""
    if isinstance(value, tuple):
        return tuple(_stacked(item, rows, copies) for item in value)
    if copies == 1 or not isinstance(value, Tensor) or value.ndim < 2 or value.shape[0] != rows:
        return value
    return value.repeat(copies, *[1] * (value.ndim - 1))


def _on_copies(edit: Ablation, rows: int, copies: int) -> Transform:
    """An edit made for the batch, on each of its copies."""

    def function(found: Tensor) -> Tensor:
        parts = found.unflatten(0, (copies, rows)).unbind()
        return torch.cat([put(part, edit.at, edit(take(part, edit.at))) for part in parts])

    return Transform(At(edit.at.site, edit.at.layer), function)


Variant = tuple[int | None, Tensor | None, Tensor | None]


def overwrite(at: At, source: Tensor, variants: Sequence[Variant], rows: int) -> Transform:
    """An edit of stacked rows: copy c gets the source's values at the place of variant c, and only there.

    source: the whole site of another run, or means, [B, ...]. A variant is (head, columns, source columns),
    columns [B, P] or None for all; head None for sites without heads, or for all heads.
    """

    def function(found: Tensor) -> Tensor:
        new = found.unflatten(0, (len(variants), rows)).clone()
        for part, (head, columns, others) in zip(new, variants, strict=True):
            here, there = _heads_last(part, at.site), _heads_last(source.to(part), at.site)
            if head is not None:
                here, there = here[:, :, head], there[:, :, head]
            if columns is None:
                here.copy_(there)
                continue
            row = torch.arange(rows, device=part.device)[:, None]
            assert others is not None
            here[row, columns.to(part.device)] = there[row, others.to(part.device)]
        return new.flatten(0, 1)

    return Transform(At(at.site, at.layer), function)


def _heads_last(found: Tensor, site: str) -> Tensor:
    """A view of a site as [B, T, ...]; of patterns as [B, query, head, key]."""
    return found.transpose(1, 2) if site == "pattern" else found


def sweep(
    restart: Restart,
    at: At,
    source: Tensor,
    variants: Sequence[Variant],
    measure: Callable[[Tensor], Tensor],
    rows: int,
) -> Tensor:
    """`measure` [variant, B] of the last residual streams of all variants, each on its own.

    measure: from [copies * B, T, d] to [copies * B]. rows: most rows in one pass.
    """
    most = max(1, rows // restart.rows)
    assert at.layer is not None
    found = []
    for start in range(0, len(variants), most):
        part = variants[start : start + most]
        resid = restart.go(at.layer, [overwrite(at, source, part, restart.rows)], copies=len(part))
        found.append(measure(resid).view(len(part), restart.rows))
    return torch.cat(found)
