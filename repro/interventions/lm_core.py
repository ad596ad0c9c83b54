"""The call in which queries, keys and values become head outputs, with edits and reads inside it.

Most families look their attention function up by the name in their config; for the time of a run the name is
one of ours, registered once, behind which the family's own function is called. GPT-Neo, and GPT-J up to
transformers 5.23, call a method of the module, which is shadowed on the instance. Either way a layer without
anything to do runs the library's own code on the library's own mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from repro.interventions.lm_edits import CutEdges, columns
from repro.interventions.lm_hooks import Site
from repro.models.language_model import LanguageModel, Layer

CORE_SITES = ("q", "k", "v", "attn_scores", "pattern")
_PREFIX = "repro_"
Wanted = Mapping[int, tuple[Mapping[str, Site], Sequence[CutEdges]]]


@contextmanager
def attention_core(model: LanguageModel, wanted: Wanted) -> Iterator[None]:
    """Within the context, attention of the given layers goes through their sites and cuts."""
    cores = {index: _Core(model.layers[index], *parts) for index, parts in wanted.items()}
    if model.layers[0].core_method is not None:
        with _shadowed(model, cores):
            yield
        return
    config = model.layers[0].attention.config
    before = config._attn_implementation
    by_module = {id(core.layer.attention): core for core in cores.values()}
    _ACTIVE.append(by_module)
    config._attn_implementation = _register(before)
    try:
        yield
    finally:
        config._attn_implementation = before
        _ACTIVE.remove(by_module)


_ACTIVE: list[dict[int, _Core]] = []


def _register(name: str) -> str:
    """Our name for a registered attention function: the same masks, and a look at `_ACTIVE` first."""
    ours = name if name.startswith(_PREFIX) else _PREFIX + name
    own = ours.removeprefix(_PREFIX)
    if ours not in ALL_ATTENTION_FUNCTIONS:

        def call(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **rest: Any) -> Any:
            found = [active[id(module)] for active in _ACTIVE if id(module) in active]
            default = None if own != "eager" else _eager_of(module)
            function = ALL_ATTENTION_FUNCTIONS.get_interface(own, default)  # type: ignore[arg-type]
            for core in found:
                return core(lambda *qkv: function(module, *qkv, **rest), q, k, v, mask)
            return function(module, q, k, v, mask, **rest)

        AttentionInterface.register(ours, call)
        AttentionMaskInterface.register(ours, ALL_MASK_ATTENTION_FUNCTIONS[own])
    return ours


def _eager_of(module: Any) -> Any:
    import sys

    return sys.modules[type(module).__module__].eager_attention_forward


@contextmanager
def _shadowed(model: LanguageModel, cores: Mapping[int, _Core]) -> Iterator[None]:
    names = []
    try:
        for core in cores.values():
            module, name = core.layer.attention, core.layer.core_method
            assert name is not None
            library = getattr(module, name)

            def call(
                q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, library=library, core=core
            ) -> Any:
                def standard(*qkv: Any) -> Any:
                    out, weights = library(*qkv)
                    return out.transpose(1, 2), weights

                out, weights = core(standard, q, k, v, mask)
                return out.transpose(1, 2), weights

            module.__dict__[name] = call
            names.append((module, name))
        yield
    finally:
        for module, name in names:
            module.__dict__.pop(name, None)


class _Core:
    """Attention of one layer: sites q, k, v, cuts, then scores and pattern where they are wanted."""

    def __init__(self, layer: Layer, sites: Mapping[str, Site], cuts: Sequence[CutEdges]) -> None:
        self.layer, self._sites, self._cuts = layer, sites, cuts

    def __call__(
        self, library: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Any]:
        """q [B,H,T,D], k and v [B,K,T,D] and the library's mask; head outputs [B,T,H,D] and weights."""
        q, k, v = (self._site(name, x) for name, x in (("q", q), ("k", k), ("v", v)))
        allowed = self._allowed(q, k, mask)
        cut = self._cut(q, k)
        if cut is not None:
            allowed = allowed & ~cut
        out, weights = None, None
        scores_or_pattern = [self._sites[name] for name in ("attn_scores", "pattern") if name in self._sites]
        if scores_or_pattern:
            out, weights = self._by_hand(q, k, v, allowed)
        if any(site.changes for site in scores_or_pattern):
            assert out is not None
            return out, weights
        out, weights = library(q, k, v, mask if cut is None else self._with_cut(mask, allowed, q))
        if cut is not None:
            seen = allowed.any(-1).transpose(1, 2)[..., None]
            out = torch.where(seen, out, 0.0)
        return out, weights

    def _site(self, name: str, x: Tensor) -> Tensor:
        site = self._sites.get(name)
        return x if site is None else site(x.transpose(1, 2)).transpose(1, 2)

    def _by_hand(self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        layer = self.layer
        scores = layer.scores(q.transpose(1, 2), k.transpose(1, 2))
        if "attn_scores" in self._sites:
            masked = torch.where(allowed, scores, torch.finfo(scores.dtype).min)
            scores = self._sites["attn_scores"](masked)
        pattern = layer.pattern(scores, allowed, v.dtype)
        if "pattern" in self._sites:
            pattern = self._sites["pattern"](pattern)
        return layer.mix(pattern, v.transpose(1, 2)), pattern

    def _allowed(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        """Which keys a query sees [1 or B, 1, Tq, Tk]: causal, local windows, and not padding."""
        keys = torch.arange(k.shape[2], device=q.device)
        queries = keys[k.shape[2] - q.shape[2] :]
        allowed = self.layer.allowed(queries, keys)[None, None]
        if mask is None:
            return allowed
        return allowed & (mask if mask.dtype == torch.bool else mask >= 0)

    def _cut(self, q: Tensor, k: Tensor) -> Tensor | None:
        """Edges to cut, [B, H, Tq, Tk]; None if there are none."""
        if not self._cuts:
            return None
        cut = torch.zeros(len(q), q.shape[1], q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
        for item in self._cuts:
            rows = torch.arange(len(q)) if item.rows is None else torch.as_tensor(item.rows)
            rows = rows.to(q.device)
            queries = columns(item.queries, len(rows), q.shape[2], q.device)
            keys = columns(item.keys, len(rows), k.shape[2], q.device)
            heads = torch.as_tensor(
                range(q.shape[1]) if item.heads is None else list(item.heads), device=q.device
            )
            where = (
                rows[:, None, None, None],
                heads[None, :, None, None],
                queries[:, None, :, None],
                keys[:, None, None, :],
            )
            cut[where] = True
        return cut

    @staticmethod
    def _with_cut(mask: Tensor | None, allowed: Tensor, q: Tensor) -> Tensor:
        """The library's mask with the cuts in it, in the form it came in."""
        if mask is None or mask.dtype == torch.bool:
            return allowed
        return torch.where(allowed, mask, torch.finfo(mask.dtype).min)
