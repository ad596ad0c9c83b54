"""Attention knockout at the last position, all windows and sets of positions at once.

Cutting edges into the last position leaves every earlier position unchanged at every depth, and the last one
unchanged below the window. So keys and values of one clean run are shared by all cells (a set of positions
and a window of layers), and a cell is one token that starts at its window's first layer. Windows that start
together are one token until the shorter ones end.

Source: Geva et al. 2023, arXiv 2304.14767, section 4. Axes: `B` prompts, `S` sets, `W` windows, `T` columns.
The definition, one whole pass a cell, is `attention_knockout_definition`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from repro.data.token_batch import TokenBatch
from repro.errors import UserError
from repro.interventions.lm_edits import At, Read
from repro.interventions.lm_run import run
from repro.models.language_model import LanguageModel, Layer

NothingLeft = Literal["uniform", "zero"]
LOGIT_ROWS = 256  # cells whose logits are formed together: 51 MB for GPT-2's vocabulary


def window(centre: int, size: int, depth: int) -> range:
    """Layers of the window of `size` at a layer (from 0), cut off at both ends, not shifted.

    Odd sizes are symmetric, even ones have one more layer below. As in the released notebook.
    """
    if size < 1:
        raise UserError(f"window: expected a size of at least 1, got {size}. Give analysis.window=9")
    return range(max(0, centre - size // 2), min(depth, centre + -(-size // 2)))


@dataclass(frozen=True, eq=False)
class Clean:
    """One untouched run over prompts: all that knockouts at the last position need.

    resid: the last position's stream at the input of every layer, [B, d] each. k, v: [B, T, K, D] of every
    layer. end: column of the last token [B]. logits: [B, V] there.
    """

    batch: TokenBatch
    end: Int[Tensor, " B"]
    logits: Float[Tensor, "B V"]
    resid: tuple[Tensor, ...]
    k: tuple[Tensor, ...]
    v: tuple[Tensor, ...]

    @classmethod
    def of(cls, model: LanguageModel, batch: TokenBatch) -> Clean:
        """Run the prompts, padded on either side, once."""
        end = batch.last
        resid = [Read(At("resid_pre", layer, positions=end)) for layer in range(model.depth)]
        k, v = ([Read(At(site, layer)) for layer in range(model.depth)] for site in "kv")
        found = run(model, batch, reads=[*resid, *k, *v], logits="last")
        assert found.logits is not None
        return cls(
            batch, end, found.logits, tuple(found[read][:, 0] for read in resid),
            tuple(found[read] for read in k), tuple(found[read] for read in v),
        )  # fmt: skip


def probability(logits: Float[Tensor, "N V"], answer: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Softmax probability of a token in each row, in float64, of differences to the largest logit."""
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    shifted = logits - logits.amax(-1, keepdim=True)
    answer = answer.to(logits.device)[:, None]
    return (shifted.gather(1, answer)[:, 0].double() - shifted.exp().sum(-1).double().log()).exp()


@torch.no_grad()
def knockout(
    model: LanguageModel,
    clean: Clean,
    sets: Bool[Tensor, "B S T"],
    windows: Sequence[range],
    answer: Int[Tensor, " B"],
    nothing_left: NothingLeft = "uniform",
) -> Float[Tensor, "B S W"]:
    """Probability of the answer when the last position may not attend to a set, in a window of layers.

    A cell in which nothing is cut that was there (an empty set, or positions beyond a local layer's reach)
    is the clean run, exactly. nothing_left: what the last position attends to when a layer has nothing left:
    `uniform`, all that it saw before, equally, as in the released code; or `zero`, nothing.
    """
    sets = sets.to(clean.logits.device)
    base = probability(clean.logits, answer)
    cuts = torch.stack([_seen(layer, clean)[:, None] & sets.to(base.device) for layer in model.layers])
    found = base[:, None, None].expand(len(base), sets.shape[1], len(windows)).clone()
    distinct = sorted({one for one in map(_ends, windows) if one[0] < one[1]})
    if not distinct:
        return found
    resid = _tokens(model, clean, sets, distinct, nothing_left)  # [B, S, distinct, d]
    chance = torch.cat([
        probability(model.unembed(model.final_norm(part)), which)
        for part, which in zip(
            resid.flatten(0, 2).split(LOGIT_ROWS),
            answer.repeat_interleave(resid.shape[1] * resid.shape[2]).split(LOGIT_ROWS),
            strict=True,
        )
    ]).view(resid.shape[:3])  # fmt: skip
    for place, layers in enumerate(windows):
        if len(layers):
            cut = cuts[layers.start : layers.stop].flatten(3).any(-1).any(0)
            at = distinct.index(_ends(layers))
            found[:, :, place] = torch.where(cut, chance[:, :, at].to(base.device), found[:, :, place])
    return found


def _ends(layers: range) -> tuple[int, int]:
    return layers.start, layers.stop


def _seen(layer: Layer, clean: Clean) -> Bool[Tensor, "B T"]:
    """Which columns the last position attends to in a layer."""
    columns = torch.arange(clean.batch.tokens.shape[1])
    end = clean.end.cpu()[:, None]
    return (layer.allowed(end, columns)[:, 0] & clean.batch.mask.cpu()).to(clean.logits.device)


@dataclass(frozen=True)
class _Token:
    """The last position of one window. It joins at a layer, clean or as another token; cut until `stop`.

    source: place of the token whose state it takes over; None: the clean run's.
    """

    joins: int
    stop: int
    source: int | None
    place: int


def _plan(distinct: Sequence[tuple[int, int]]) -> list[_Token]:
    """Tokens in the order in which they join. Of windows with one start the longest is others' source."""
    longest = {start: max(stop for first, stop in distinct if first == start) for start, _ in distinct}
    joined = sorted(
        (start if stop == longest[start] else stop, start, stop, place)
        for place, (start, stop) in enumerate(distinct)
    )
    order = {(start, stop): at for at, (_, start, stop, _) in enumerate(joined)}
    return [
        _Token(joins, stop, None if joins == start else order[start, longest[start]], place)
        for joins, start, stop, place in joined
    ]


def _tokens(
    model: LanguageModel, clean: Clean, sets: Tensor, distinct: Sequence[tuple[int, int]],
    nothing_left: NothingLeft,
) -> Tensor:  # fmt: skip
    """The last residual stream of every cell, [B, S, distinct windows, d]."""
    plan, count = _plan(distinct), sets.shape[1]
    x, position = None, clean.batch.position_ids.gather(1, clean.end.cpu()[:, None])
    joined = 0
    for layer in model.layers:
        device = layer.output_matrix.device
        parts = [] if x is None else [x.to(device)]
        while joined < len(plan) and plan[joined].joins == layer.index:
            source, joined = plan[joined].source, joined + 1
            fresh = clean.resid[layer.index][:, None].expand(-1, count, -1) if source is None else None
            parts.append((parts[0][:, source] if fresh is None else fresh)[:, None].to(device))
        if not parts:
            continue
        x = torch.cat(parts, dim=1)  # [B, joined, S, d]
        # Those that took over another's state did so because their own window was over.
        cut = torch.tensor([token.source is None and layer.index < token.stop for token in plan[:joined]])
        x = _block(layer, clean, x, position.to(device), sets, cut, nothing_left)
    assert x is not None
    places = torch.tensor([token.place for token in plan])
    return x[:, places.argsort().to(x.device)].transpose(1, 2)


def _block(
    layer: Layer, clean: Clean, x: Tensor, position: Tensor, sets: Tensor, cut: Tensor,
    nothing_left: NothingLeft,
) -> Tensor:  # fmt: skip
    """One block on the last position of every cell [B, M, S, d]; cut [M]: which windows are cut here."""
    rows, shape = len(x), x.shape
    flat = x.flatten(1, 2)  # [B, M*S, d]
    cells = flat.shape[1]
    q, k, v = layer.project(layer.norm1(flat), position.expand(rows, cells))
    seen = _seen(layer, clean).to(x.device)
    removed = cut.to(x.device)[None, :, None, None] & sets.to(x.device)[:, None]  # [B, M, S, T]
    z = _attend(layer, clean, q, k, v, seen, removed.flatten(1, 2), nothing_left)
    attn = layer.attn_out(z)
    if getattr(layer, "post_norm", False):
        middle = layer.first_norm(flat + attn)
        return layer.second_norm(middle + layer.mlp(middle)).view(shape)
    middle = flat + attn
    return (middle + layer.mlp(layer.norm2(middle if layer.reads_mid else flat))).view(shape)


def _attend(
    layer: Layer, clean: Clean, q: Tensor, k: Tensor, v: Tensor, seen: Tensor, removed: Tensor,
    nothing_left: NothingLeft,
) -> Tensor:  # fmt: skip
    """z [B, C, H, D] of cells with queries, and own keys and values, [B, C, .., D].

    The keys of a cell are the clean ones of all earlier columns, and its own as one more. seen: columns
    [B, T] that the last position attends to; removed: what each cell may not, [B, C, T].
    """
    rows, cells = q.shape[:2]
    clean_k, clean_v = (part[layer.index].to(q.device) for part in (clean.k, clean.v))
    own = layer.scores(q.flatten(0, 1)[:, None], k.flatten(0, 1)[:, None])  # [B*C, H, 1, 1]
    own = own.view(rows, cells, -1, 1).transpose(1, 2)
    scores = torch.cat([layer.scores(q, clean_k), own], dim=-1)  # [B, H, C, T+1]
    end = clean.end.to(q.device)[:, None]
    at_end = torch.arange(seen.shape[1], device=q.device) == end  # [B, T]
    before = (seen & ~at_end)[:, None].expand(rows, cells, -1)
    itself = seen.gather(1, end)[:, None].expand(rows, cells, 1)
    visible = torch.cat([before, itself], dim=-1)
    taken = torch.cat([removed, removed.gather(2, end[:, None].expand(rows, cells, 1))], dim=-1)
    allowed = visible & ~taken
    pattern = layer.pattern(scores, allowed[:, None], v.dtype)
    if nothing_left == "uniform":
        even = (visible.double() / visible.sum(-1, keepdim=True)).to(pattern.dtype)
        pattern = torch.where(allowed.any(-1)[:, None, :, None], pattern, even[:, None])
    z = layer.mix(pattern[..., :-1], clean_v)  # [B, C, H, D]
    mixed = layer.mix(
        pattern[..., -1:].transpose(1, 2).flatten(0, 1)[:, :, None], v.flatten(0, 1)[:, None]
    )  # [B*C, 1, H, D]
    return z + mixed.view_as(z)
