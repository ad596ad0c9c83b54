"""Log-probabilities of choices under many masks in one sweep over the layers.

Masks that agree in all layers so far share one stream; it branches at the first layer where they differ, and
behind attention where they remove the same heads and not the same FFN. Removed heads and FFNs are left out of
the matrix products, all that is kept of one kind runs as one product, and every layer's weights are visited
once for all masks. In the last layer only columns that predict something are computed.

The definition, one whole pass for each mask and choice, is `masked_definition`. Axes: `M` masks, `N` streams,
`R` rows, `T` columns, `C` columns that predict, `P` targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from repro.errors import UserError
from repro.interventions.masked_rows import Row, RowBatch, stack
from repro.interventions.masks import Mask
from repro.models.language_model import LanguageModel, Layer
from repro.models.offload import at_hand

PASS_TOKENS = 8192  # tokens that go through one product together: 100 MB of hidden units at width 768
LOGIT_ROWS = 512


@dataclass(frozen=True, eq=False)
class Scores:
    """Of every mask and target: log-probability [M, P] (float64), and whether it is the likeliest token."""

    log_probability: Float[Tensor, "M P"]
    likeliest: Bool[Tensor, "M P"]


@dataclass(frozen=True, eq=False)
class _Columns:
    """The columns [R, C] that predict something, padded, and where each target finds its own."""

    columns: Tensor
    places: Tensor  # of the distinct (row, column) that targets read: flat in [R, C]
    of_target: Tensor  # index into places, [P]

    @classmethod
    def of(cls, batch: RowBatch) -> _Columns:
        rows, width = batch.tokens.shape
        flat, of_target = torch.unique(batch.row * width + batch.column, return_inverse=True)
        row, column = flat // width, flat % width
        at = torch.arange(len(flat)) - torch.searchsorted(row, row)  # place within its row
        columns = torch.zeros(rows, int(at.max()) + 1, dtype=torch.long)
        columns[row, at] = column
        return cls(columns, row * columns.shape[1] + at, of_target)


def check_ffns(model: LanguageModel) -> None:
    """Refuse models in which leaving out an FFN with its norm is not the same as a zero output of it."""
    if getattr(model.layers[0], "post_norm", False):
        raise UserError(
            "model: this checkpoint normalises after each sublayer (as OPT-350M does); removing an FFN is"
            " defined for models that normalise before. Choose another size, or remove heads alone"
        )


@torch.no_grad()
def sweep(model: LanguageModel, rows: Sequence[Row], masks: Sequence[Mask], columns: int | None) -> Scores:
    """Scores of the rows' targets, in the order in which `stack` puts them.

    columns: the log-softmax is over the first so many logits (None: all of them). Raises `UserError` for
    logits that are not finite, and for FFNs to be removed from a model that normalises after them.
    """
    if any(any(mask.ffns) for mask in masks):
        check_ffns(model)
    batch = stack(rows)
    needed = _Columns.of(batch)
    start = embedded(model, batch.tokens, batch.positions)
    streams, stream_of = start[None], [0] * len(masks)
    for layer in model.layers:
        read = needed.columns if layer.index == model.depth - 1 else None
        with at_hand(layer.block):
            streams, stream_of = _through(layer, streams, stream_of, masks, batch, read)
    with at_hand(model.last_norm, model.project_out, model.head):
        found = [_scored(model, one, batch, needed, columns) for one in streams]
    chances, first = (torch.stack(part) for part in zip(*found, strict=True))
    return Scores(chances[stream_of], first[stream_of])


class _Stop(Exception):
    """The first block was reached."""


def embedded(model: LanguageModel, tokens: Tensor, positions: Tensor) -> Tensor:
    """What enters the first block [R, T, d], for tokens at any positions."""
    kept: list[Tensor] = []

    def stop(module: object, args: tuple, kwargs: dict) -> None:
        kept.append(args[0] if args else kwargs["hidden_states"])
        raise _Stop

    with ExitStack() as stack_:
        stack_.callback(model.layers[0].block.register_forward_pre_hook(stop, with_kwargs=True).remove)
        try:
            model.hf.base_model(
                input_ids=tokens.to(model.device), position_ids=positions.to(model.device), use_cache=False
            )
        except _Stop:
            pass
    return kept[0]


def _through(
    layer: Layer, streams: Tensor, stream_of: Sequence[int], masks: Sequence[Mask], batch: RowBatch,
    read: Tensor | None,
) -> tuple[Tensor, list[int]]:  # fmt: skip
    """All streams [N, R, T, d] through one block, branching; which stream each mask has then.

    read: columns [R, C] that go on, where the others are not needed.
    """
    at, everything = layer.index, range(layer.heads)
    kept = [tuple(head for head in everything if head not in mask.heads[at]) for mask in masks]
    entering = list(zip(stream_of, kept, strict=True))
    middles = _numbered(entering)
    leaving = [(middles[key], mask.ffns[at]) for key, mask in zip(entering, masks, strict=True)]
    ends = _numbered(leaving)
    streams = streams.to(next(layer.block.parameters()).device)
    attn = _attention(layer, streams, list(middles), batch, read)
    before = streams if read is None else _at_columns(streams, read)
    entered = before[[stream for stream, _ in middles]]
    if getattr(layer, "post_norm", False):  # no FFN is removed, so streams are as many as middles
        middle = layer.first_norm(entered + attn)
        return _in_parts(lambda x: layer.second_norm(x + layer.mlp(x)), middle), [
            ends[one] for one in leaving
        ]
    middle = entered + attn
    with_ffn = [end for end, (_, gone) in enumerate(ends) if not gone]
    out = middle[[place for place, _ in ends]]
    if with_ffn:
        source = middle if layer.reads_mid else entered
        chosen = source[[list(ends)[end][0] for end in with_ffn]]
        out[with_ffn] += _in_parts(lambda x: layer.mlp(layer.norm2(x)), chosen)
    return out, [ends[one] for one in leaving]


def _attention(
    layer: Layer, streams: Tensor, middles: Sequence[tuple[int, tuple[int, ...]]], batch: RowBatch,
    read: Tensor | None,
) -> Tensor:  # fmt: skip
    """What attention adds [middle, R, T or C, d], for pairs of a stream and the heads that are kept."""
    needed: dict[int, set[int]] = {}
    for stream, kept in middles:
        needed.setdefault(stream, set()).update(kept)
    groups: dict[tuple[int, ...], list[int]] = {}
    for stream, heads in needed.items():
        groups.setdefault(tuple(sorted(heads)), []).append(stream)
    columns = streams.shape[2] if read is None else read.shape[1]
    out = streams.new_zeros(len(middles), streams.shape[1], columns, streams.shape[3])
    together = max(1, PASS_TOKENS // (streams.shape[1] * streams.shape[2]))
    for heads, members in groups.items():
        for begin in range(0, len(members), together):
            some = members[begin : begin + together]
            z = _z(layer, streams[some], heads, batch, read)
            for kept in dict.fromkeys(kept for stream, kept in middles if stream in some):
                places = [
                    place for place, (stream, its) in enumerate(middles) if its == kept and stream in some
                ]
                mixed = z[[some.index(middles[place][0]) for place in places]]
                if kept != heads:
                    mixed = mixed[..., [heads.index(head) for head in kept], :]
                out[places] = layer.attn_out_of(mixed, kept)
    return out


def _z(layer: Layer, streams: Tensor, heads: tuple[int, ...], batch: RowBatch, read: Tensor | None) -> Tensor:
    """z [n, R, T or C, h, D] of some heads, of streams [n, R, T, d]."""
    count, rows = streams.shape[:2]
    columns = streams.shape[2] if read is None else read.shape[1]
    if not heads:
        return streams.new_zeros(count, rows, columns, 0, layer.output_matrix.shape[1])
    attn_in = layer.norm1(streams.flatten(0, 1))
    positions = batch.positions.to(streams.device).repeat(count, 1)
    if len(heads) == layer.heads:
        q, k, v = layer.project(attn_in, positions)
    else:
        q, k, v = layer.project_heads(attn_in, positions, heads)
    allowed = layer.allowed(batch.positions, batch.positions) & batch.seen
    if read is not None:
        allowed = allowed.gather(1, read[:, :, None].expand(-1, -1, allowed.shape[2]))
        at = read.to(q.device).repeat(count, 1)[:, :, None, None]
        q = q.gather(1, at.expand(-1, -1, *q.shape[2:]))
    z = layer.attend(q, k, v, allowed[:, None].to(q.device).repeat(count, 1, 1, 1))
    return z.unflatten(0, (count, rows))


def _at_columns(streams: Tensor, read: Tensor) -> Tensor:
    """[N, R, T, d] at columns [R, C] of each row."""
    at = read.to(streams.device)[None, :, :, None]
    return streams.gather(2, at.expand(len(streams), -1, -1, streams.shape[3]))


def _in_parts(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A function of rows, over all but the last axis, so many rows at a time."""
    flat = x.flatten(0, -2)
    return torch.cat([function(part) for part in flat.split(PASS_TOKENS)]).view(x.shape)


def _numbered(keys: Iterable[Any]) -> dict[Any, int]:
    """Distinct keys in order of appearance, with their number."""
    found: dict[Any, int] = {}
    for key in keys:
        found.setdefault(key, len(found))
    return found


def _scored(
    model: LanguageModel, stream: Tensor, batch: RowBatch, needed: _Columns, columns: int | None
) -> tuple[Tensor, Tensor]:
    """Log-probability and whether it is the largest, of every target [P], of one stream [R, C, d]."""
    device = model.unembedding.device
    token, places = batch.token.to(device), needed.of_target.to(device)
    resid = stream.flatten(0, 1)[needed.places.to(stream.device)]
    chances = torch.zeros(len(token), dtype=torch.float64, device=device)
    likeliest = torch.zeros(len(token), dtype=torch.bool, device=device)
    for begin in range(0, len(resid), LOGIT_ROWS):
        normed = model.final_norm(resid[begin : begin + LOGIT_ROWS]).to(device)
        logits = model.unembed(normed)[:, :columns]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if not bool(torch.isfinite(logits).all()):
            raise UserError(
                f"logits are not finite (dtype {model.dtype}). Give model.dtype=float32, and check the"
                " checkpoint's weights"
            )
        here = ((places >= begin) & (places < begin + LOGIT_ROWS)).nonzero().flatten()
        at, wanted = places[here] - begin, token[here]
        chances[here] = (logits[at, wanted] - logits.logsumexp(-1)[at]).double()
        likeliest[here] = logits.argmax(-1)[at] == wanted
    return chances.cpu(), likeliest.cpu()
