"""Many knockouts of attention heads at once: sets of (head, position) nodes replaced by their mean.

Source: Wang et al. 2022, arXiv 2211.00593, sections on knockouts and on evaluating a circuit. The subject is
the whole model, or a circuit: some nodes, all others being held at their mean. Each set is knocked out on its
own, in addition. By definition that is one full pass a set (`mean_ablation.knock_out`). Here one remembered
pass serves all sets, which are stacked as rows and computed only where they can differ from it:

- at columns from the earliest of a set's nodes on, and, in a circuit, only at columns where it has nodes
  (elsewhere all heads are constants, so nothing that a set does gets there);
- from the lowest layer of a set's nodes on; and, above the highest layer of the circuit, at END alone.

Axes: `n` sets, `B` prompts, `W` columns, `T` all columns, `H` heads, `D` head width, `d` width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from repro.data.token_batch import TokenBatch
from repro.interventions.lm_edits import At
from repro.interventions.lm_run import run
from repro.interventions.mean_ablation import Masks, Means, knock_out, outside
from repro.models.language_model import LanguageModel, Layer

# Tokens (set, prompt, column) whose keys and values are copied at once. More would only leave a CPU's caches.
CPU_TOKENS = 8192
GPU_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class _Group:
    """Sets with the same columns [B, W], sorted by `starts`, the lowest layer of each."""

    index: list[int]
    columns: Tensor
    starts: list[int]


class KnockoutSets:
    """A model, or a circuit in it, over one batch of prompts, ready to lose sets of nodes.

    kept: nodes of the circuit, (("z", layer) -> booleans [B, T, H]); None: the whole model. end: the column
    of each row where the answer is read. Sets are masks of the same form; nodes outside the circuit are at
    their mean anyway. Raises `UserError` for prompts that the means do not cover.
    """

    def __init__(
        self, model: LanguageModel, batch: TokenBatch, groups: Tensor, end: Tensor, means: Means,
        kept: Masks | None = None,
    ) -> None:  # fmt: skip
        means.check(batch, groups)
        self.model, self.kept = model, kept
        device = model.device
        self._mask, self._ids, self._end = (x.to(device) for x in (batch.mask, batch.position_ids, end))
        self._means = [means.at("z", layer, batch, groups) for layer in range(model.depth)]
        edits = [] if kept is None else knock_out(means, batch, groups, outside(model, batch, kept))
        layers = range(model.depth)
        self._reads = {(site, layer): At(site, layer) for layer in layers for site in ("resid_pre", "k", "v")}
        if kept is not None:
            self._reads |= {("z", layer): At("z", layer) for layer in layers}
        final = At("resid_post", model.depth - 1, positions=end)
        found = run(model, batch, edits, [*self._reads.values(), final], logits=None)
        self._base = {key: found[at] for key, at in self._reads.items()}
        self.untouched: Tensor = found[final][:, 0]
        # Above the last layer with live heads nothing moves between positions.
        self._top = model.depth - 1 if kept is None else max(_layers(kept), default=0)

    @torch.no_grad()
    def resid(self, sets: Sequence[Masks], advance: Callable[[int], None] | None = None) -> Tensor:
        """The last residual stream at END with each set knocked out, [n, B, d]; an empty one changes nothing.

        advance: told how many sets are done.
        """
        out = self.untouched.repeat(len(sets), 1, 1)
        groups = self._groups(sets)
        empty = len(sets) - sum(len(group.index) for group in groups)
        if advance is not None and empty:
            advance(empty)
        for group in groups:
            most = max(1, self._tokens() // self._mask.numel())
            for begin in range(0, len(group.index), most):
                part = slice(begin, begin + most)
                index = group.index[part]
                out[index] = self._follow(
                    [sets[i] for i in index], group.columns, group.starts[part]
                ).to(out.device)  # fmt: skip
                if advance is not None:
                    advance(len(index))
        return out

    def _groups(self, sets: Sequence[Masks]) -> list[_Group]:
        found: dict[tuple, list[tuple[int, int]]] = {}
        columns: dict[tuple, Tensor] = {}
        for i, masks in enumerate(sets):
            layers = self._effective(masks)
            if not layers:
                continue
            live = self._live(masks)
            key = tuple(live.flatten().tolist())
            columns[key] = live
            found.setdefault(key, []).append((min(layers), i))
        return [
            _Group(
                [i for _, i in sorted(items)], _listed(columns[key]), [start for start, _ in sorted(items)]
            )
            for key, items in found.items()
        ]

    def _effective(self, masks: Masks) -> list[int]:
        """Layers in which a set takes nodes that are not at their mean already."""
        if self.kept is None:
            return _layers(masks)
        return [
            layer
            for layer in set(_layers(masks)) & set(_layers(self.kept))
            if bool((masks["z", layer] & self.kept["z", layer]).any())
        ]

    def _live(self, masks: Masks) -> Tensor:
        """Columns [B, T] where the stream can differ from the remembered pass; END is always among them."""
        touched = torch.stack([masks["z", layer].any(-1) for layer in _layers(masks)]).any(0)
        live = touched.long().cumsum(-1) > 0
        if self.kept is not None:
            live &= torch.stack([self.kept["z", layer].any(-1) for layer in _layers(self.kept)]).any(0)
        end = self._end.to(live.device)
        live &= torch.arange(live.shape[1], device=live.device) <= end[:, None]
        return live.scatter(1, end[:, None], True)

    def _follow(self, sets: Sequence[Masks], columns: Tensor, starts: Sequence[int]) -> Tensor:
        """The stream at END [n, B, d] of sets sorted by where they start."""
        columns = columns.to(self._mask.device)
        x = self._clean(starts[0], columns)[None][:0]
        here = columns
        for layer in self.model.layers[starts[0] :]:
            index = layer.index
            x = x.to(layer.output_matrix.device)
            fresh = sum(start <= index for start in starts) - len(x)
            if fresh:
                start = self._clean(index, here).to(x)
                x = torch.cat([x, start.expand(fresh, *start.shape)])
            queries = self._end[:, None] if index >= self._top else here
            z = self._heads(layer, sets[: len(x)], x, here, queries)
            x = x if queries is here else _picked(x, here, queries)
            here = queries
            x = _after(layer, x, layer.attn_out(z))
        return x[:, :, 0]

    def _heads(
        self, layer: Layer, sets: Sequence[Masks], x: Tensor, columns: Tensor, queries: Tensor
    ) -> Tensor:
        """z [n, B, Q, H, D] at `queries`, of the stream x [n, B, W, d] at `columns`; [1, ...] if constant."""
        index = layer.index
        kept = None if self.kept is None else self.kept.get(("z", index))
        if self.kept is not None and (kept is None or not bool(kept.any())):
            return _at(self._base["z", index], queries)[None]
        z = self._attention(layer, x, columns, queries)
        if kept is not None:
            live = _at(kept.to(z.device), queries)[..., None]
            z = torch.where(live, z, _at(self._base["z", index], queries))
        if any(("z", index) in masks for masks in sets):
            none = torch.zeros(*self._mask.shape, layer.heads, dtype=torch.bool)
            gone = torch.stack([_at(masks.get(("z", index), none), queries.cpu()) for masks in sets])
            mean = _at(self._means[index], queries.to(self._means[index].device))
            z = torch.where(gone[..., None].to(z.device), mean.to(z), z)
        return z

    def _attention(self, layer: Layer, x: Tensor, columns: Tensor, queries: Tensor) -> Tensor:
        """z [n, B, Q, H, D] of all heads: own keys and values at `columns`, remembered ones elsewhere."""
        count, rows = x.shape[:2]
        ids = self._ids.gather(1, columns).repeat(count, 1).to(x.device)
        q, k, v = layer.project(layer.norm1(x.flatten(0, 1)), ids)
        here = columns.repeat(count, 1).to(x.device)
        if queries is not columns:
            q = _picked(q.unflatten(0, (count, rows)), columns, queries).flatten(0, 1)
        row = torch.arange(len(here), device=x.device)[:, None]
        keys, values = (
            self._base[site, layer.index].repeat(count, 1, 1, 1).index_put((row, here), own)
            for site, own in (("k", k), ("v", v))
        )
        seen = layer.allowed(queries, torch.arange(self._mask.shape[1], device=queries.device))
        seen = (seen & self._mask[:, None, :])[:, None].repeat(count, 1, 1, 1).to(x.device)
        return layer.attend(q, keys, values, seen).unflatten(0, (count, rows))

    def _clean(self, layer: int, columns: Tensor) -> Tensor:
        return _at(self._base["resid_pre", layer], columns)

    def _tokens(self) -> int:
        if self.model.device.type != "cuda":
            return CPU_TOKENS
        free, _ = torch.cuda.mem_get_info(self.model.device)
        token = (4 * self.model.mlp_width + 24 * self.model.width) * self.model.unembedding.element_size()
        return max(int(free * GPU_SHARE / token), CPU_TOKENS)


def _layers(masks: Masks) -> list[int]:
    return [layer for (site, layer), mask in masks.items() if site == "z" and bool(mask.any())]


def _listed(live: Tensor) -> Tensor:
    """Columns [B, W] of booleans [B, T], rising, all different; rows that have fewer get some more."""
    width = int(live.sum(-1).max())
    order = torch.argsort((~live).to(torch.int8), dim=-1, stable=True)
    return order[:, :width].sort(-1).values


def _at(values: Tensor, columns: Tensor) -> Tensor:
    """values [B, T, ...] at columns [B, W]: [B, W, ...]."""
    return values[
        torch.arange(len(values), device=values.device)[:, None], columns.to(values.device)
    ]  # fmt: skip


def _picked(x: Tensor, columns: Tensor, wanted: Tensor) -> Tensor:
    """x [n, B, W, ...] at `columns`, at those wanted [B, Q], which are among them."""
    place = (columns[:, None, :] == wanted[:, :, None]).int().argmax(-1).to(x.device)
    return x[:, torch.arange(len(place), device=x.device)[:, None], place]


def _after(layer: Layer, x: Tensor, attn: Tensor) -> Tensor:
    """The block's output, of its input and what attention adds."""
    middle = x + attn
    if getattr(layer, "post_norm", False):  # norms stand behind the sums
        middle = layer.first_norm(middle)
        return layer.second_norm(middle + layer.mlp(middle))
    return middle + layer.mlp(layer.norm2(middle if layer.reads_mid else x))
