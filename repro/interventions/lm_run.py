"""Run a language model with edits and reads; every hook is gone when it is done, also after an exception.

The library's modules stay as they are. Sites between modules are reached by hooks; queries, keys, scores and
patterns at the one call that turns (q, k, v) into head outputs, which for the time of a run goes through
`_Core`. Scores and patterns are formed only in layers where they are read or edited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from repro.data.token_batch import TokenBatch
from repro.errors import UserError
from repro.interventions import lm_hooks
from repro.interventions.lm_core import CORE_SITES, attention_core
from repro.interventions.lm_edits import LM_SITES, At, CutEdges, Edit, Read, check, put, take
from repro.models.language_model import LanguageModel

Logits = str | Tensor | tuple[Tensor, Tensor] | None


class Run:
    """What a run left: logits, and what was read.

    logits: [B, T, V], or [B, V] where one position a row was asked for, or [N, V] for N places; or None.
    """

    def __init__(self) -> None:
        self.logits: Tensor | None = None
        self._kept: dict[int, Any] = {}
        self._gradients: dict[int, Any] = {}
        self._reads: list[Read] = []

    def __getitem__(self, place: Read | At | tuple[str, int | None] | str) -> Any:
        """The value read at a place: by its Read, its At, (site, layer), or a site that has no layer."""
        return self._kept[self._find(place)]

    def gradient(self, place: Read | At | tuple[str, int | None] | str) -> Any:
        """The gradient there; with a `reduce` of its own, what that gave of value and gradient."""
        return self._gradients[self._find(place)]

    def _find(self, place: Any) -> int:
        for read in self._reads:
            if (
                place is read
                or place is read.at
                or (read.at.key == (place if isinstance(place, tuple) else (place, None)))
            ):
                return id(read)
        alike = [read for read in self._reads if isinstance(place, At) and read.at.key == place.key]
        if len(alike) == 1:  # another At for the only thing that was read at this site
            return id(alike[0])
        got = place.key if isinstance(place, At) else place
        valid = ", ".join(f"{site}.{layer}" for site, layer in (read.at.key for read in self._reads))
        raise UserError(f"nothing was read at {got}. Read were: {valid or 'none'}")


def run(
    model: LanguageModel,
    batch: TokenBatch,
    edits: Sequence[Edit] = (),
    reads: Sequence[Read | At] = (),
    logits: Logits = "all",
    gradient_of: Callable[[Any], Tensor] | None = None,
) -> Run:
    """One forward pass, and a backward pass if `gradient_of` (logits -> scalar) is given.

    logits: "all" positions, "last" real token of each row, a LongTensor [B] of columns, rows and columns of
    N places (two LongTensors [N]), or None.
    Raises `UserError` for places that do not exist, and if logits are not finite.
    """
    result = Run()
    result._reads = [read if isinstance(read, Read) else Read(read) for read in reads]
    wants_gradient = any(read.gradient for read in result._reads)
    if wants_gradient != (gradient_of is not None):
        raise UserError("gradient_of and reads with gradient=True need each other")
    with torch.set_grad_enabled(wants_gradient), _hooked(model, edits, result):
        hidden = _trunk(model, batch)
        if logits is not None:
            result.logits = _logits(model, batch, hidden, logits)
        if gradient_of is not None:
            loss = gradient_of(result.logits)
            loss.backward()
    if result.logits is not None:
        result.logits = result.logits.detach()
        if not torch.isfinite(result.logits).all():
            raise UserError(
                f"logits are not finite (dtype {model.dtype}). Give model.dtype=float32, and check"
                " the checkpoint's weights"
            )
    return result


@contextmanager
def edited(model: LanguageModel, edits: Sequence[Edit]) -> Iterator[None]:
    """For the time of the context, every call of `model.hf` is edited."""
    with _hooked(model, edits, Run()):
        yield


@contextmanager
def observed(model: LanguageModel, reads: Sequence[Read]) -> Iterator[Run]:
    """For the time of the context, what calls of the model or its blocks leave at these places is kept.

    Gradients come with the caller's own backward pass.
    """
    result = Run()
    result._reads = list(reads)
    with _hooked(model, (), result):
        yield result


def _trunk(model: LanguageModel, batch: TokenBatch) -> Tensor:
    tokens, arguments = batch.tokens.to(model.device), {}
    if not bool(batch.mask.all()):
        arguments = {
            "attention_mask": batch.mask.to(model.device).long(),
            "position_ids": batch.position_ids.to(model.device),
        }
    if tokens.shape[1] > model.max_positions:
        raise UserError(
            f"prompts of {tokens.shape[1]} tokens: the model takes at most {model.max_positions}."
            " Give shorter ones"
        )
    if int(tokens.max()) >= model.vocabulary or int(tokens.min()) < 0:
        raise UserError(
            f"token ids {int(tokens.min())} to {int(tokens.max())}: it has 0 to {model.vocabulary - 1}."
            " Use the tokenizer of the model"
        )
    return model.hf.base_model(input_ids=tokens, use_cache=False, **arguments).last_hidden_state


def _logits(model: LanguageModel, batch: TokenBatch, hidden: Tensor, wanted: Any) -> Tensor:
    if isinstance(wanted, str) and wanted == "all":
        return model.head(hidden)
    if isinstance(wanted, tuple):
        rows, columns = (part.to(hidden.device) for part in wanted)
        return model.head(hidden[rows, columns])
    last = batch.last if isinstance(wanted, str) else wanted
    rows = torch.arange(len(hidden), device=hidden.device)
    return model.head(hidden[rows, last.to(hidden.device)])


class _Site:
    """Edits and reads of one (site, layer), applied to its whole tensor."""

    def __init__(self, result: Run) -> None:
        self.edits: list[Any] = []
        self.reads: list[Read] = []
        self._result = result

    @property
    def changes(self) -> bool:
        """Whether what comes out must go on in place of what came in."""
        return bool(self.edits) or any(read.gradient for read in self.reads)

    def __call__(self, found: Tensor) -> Tensor:
        for edit in self.edits:
            found = put(found, edit.at, edit(take(found, edit.at)))
        if any(read.gradient for read in self.reads) and not found.requires_grad:
            found = found.detach().requires_grad_()  # the first leaf: nothing below it is differentiated
        for read in self.reads:
            self._keep(read, found)
        return found

    def _keep(self, read: Read, found: Tensor) -> None:
        kept, gradients = self._result._kept, self._result._gradients
        value = take(found.detach(), read.at)
        if not read.gradient:
            # A copy: the library may go on to change what it passed through here.
            kept[id(read)] = read.reduce(value) if read.reduce else value.clone()
            return
        if read.reduce is None:
            kept[id(read)] = value.clone()

        def receive(gradient: Tensor, value: Tensor = value) -> None:
            part = take(gradient, read.at)
            gradients[id(read)] = read.reduce(value, part) if read.reduce else part

        found.register_hook(receive)


@contextmanager
def _hooked(model: LanguageModel, edits: Sequence[Edit], result: Run) -> Iterator[None]:
    sites: dict[tuple[str, int | None], _Site] = {}
    cuts: dict[int, list[CutEdges]] = {}
    for item in [*edits, *result._reads]:
        if isinstance(item, CutEdges):
            check(At("pattern", item.layer, item.heads), model)
            cuts.setdefault(item.layer, []).append(item)
            continue
        check(item.at, model)
        key = ("resid_pre", 0) if item.at.site == "embedding" else item.at.key
        site = sites.setdefault(key, _Site(result))
        (site.reads if isinstance(item, Read) else site.edits).append(item)
    inside: dict[int, tuple[dict[str, Any], list[CutEdges]]]
    inside = {layer: ({}, given) for layer, given in cuts.items()}
    with ExitStack() as stack:
        for (name, layer), site in sorted(sites.items(), key=lambda item: LM_SITES.index(item[0][0])):
            if name in CORE_SITES:
                inside.setdefault(layer or 0, ({}, []))[0][name] = site
                continue
            for handle in lm_hooks.add(model, name, layer, site):
                stack.callback(handle.remove)
        if inside:
            stack.enter_context(attention_core(model, inside))
        yield
