"""What receivers do with new queries, keys and values: their new outputs, or all that follows.

Axes: `n` cases, `B` prompts, `W` columns, `H` heads, `K` key/value heads, `D` head width, `T` positions.
Keys and values of columns that no case changes are the clean run's, shared by all cases.
"""

from __future__ import annotations

import torch
from torch import Tensor

from repro.interventions.path_patching_cache import Cached, post_norm, window
from repro.interventions.path_patching_plan import Stage, at_layer, groups_of
from repro.interventions.path_patching_stream import Written
from repro.models.language_model import LanguageModel, Layer

Values = dict[tuple[int, str], Tensor]  # (layer, letter) -> [n, B, P, R, D] for the receivers of a stage
Own = tuple[Tensor, Tensor, Tensor]  # keys and values [n, B, W, K, D] at neighbouring columns [B, W]


def receive(
    model: LanguageModel, cached: Cached, stage: Stage, layer: int, delta: Tensor
) -> Values:  # fmt: skip
    """Fresh inputs of the receivers of one layer, from the changed stream [n, B, P, d] at its input."""
    block, columns = model.layers[layer], stage.columns
    stream = cached.at("resid_pre", layer, columns) + delta
    found = dict(zip("qkv", _project(block, cached, stream, columns), strict=True))
    return {
        (layer, letter): found[letter][..., inputs.heads, :]
        for letter, inputs in at_layer(stage, layer).items()
    }


def write(
    model: LanguageModel, cached: Cached, stage: Stage, values: Values, columns: Tensor, cases: int
) -> Written:
    """What receivers with these inputs newly add to the stream at `columns`, everything else being clean.

    Inputs of a receiving head that do not receive keep their clean values, so nothing passes from one
    receiver of the stage to another.
    """
    changes: dict[int, Tensor] = {}
    for index in stage.layers:
        layer = model.layers[index]
        n = len(next(value for (at, _), value in values.items() if at == index))
        if n:
            z = _receivers(cached, stage, values, layer, n, columns)
            changes[index] = _added(cached, stage, layer, z, columns)
    return Written(changes, cases)


@torch.no_grad()
def rerun(model: LanguageModel, cached: Cached, stage: Stage, values: Values, end: Tensor) -> Tensor:
    """The stream after the last block at `end` [B], [n, B, d], everything after the receivers recomputed.

    Restarts at the lowest receiving layer and the earliest receiving position; n is the number of cases
    that reach the highest receiver, and those above the reach of a lower one find its clean value there.
    """
    columns, x = window(stage.columns, end[:, None]), None
    for layer in model.layers[stage.layers[0] :]:
        index, at_last = layer.index, layer.index == model.depth - 1
        n = max([0 if x is None else len(x), *(len(v) for (at, _), v in values.items() if at == index)])
        if not n:
            continue
        here = end[:, None] if at_last else columns  # after the last layer nothing but END is read
        if x is None:
            z = _receivers(cached, stage, values, layer, n, here)
            attn = cached.at("attn_out", index, here) + _added(cached, stage, layer, z, here)
            x = cached.at("resid_pre", index, here).expand_as(attn)
        else:
            x = x.to(layer.output_matrix.device)
            if n > len(x):  # cases whose first receiver is here: clean so far
                fresh = cached.at("resid_pre", index, columns)
                x = torch.cat([x, fresh.expand(n - len(x), *fresh.shape)])
            attn = layer.attn_out(_attention(cached, stage, values, layer, x, columns, here))
            x = x if here is columns else _pick(x, columns, here)
        x = _after(layer, cached, x, attn, here)
    assert x is not None, "a stage without any live case is not run again"
    return x[:, :, 0]


def _attention(
    cached: Cached, stage: Stage, values: Values, layer: Layer, x: Tensor, columns: Tensor, queries: Tensor
) -> Tensor:
    """z [n, B, X, H, D] at `queries`, of the stream [n, B, W, d] at the block's input; receivers as told."""
    q, k, v = (
        _overwritten(part, stage, values, layer.index, letter, columns)
        for letter, part in zip("qkv", _project(layer, cached, x, columns), strict=True)
    )
    q = q if queries is columns else _pick(q, columns, queries)
    z = _attend(cached, layer, q, queries, (k, v, columns))
    return cached.held("z", layer.index, queries, z)


def _receivers(cached: Cached, stage: Stage, values: Values, layer: Layer, n: int, queries: Tensor) -> Tensor:
    """z [n, B, X, H, D] at `queries` where all inputs are clean but for those that receive."""
    index = layer.index
    clean_q = cached.at("q", index, queries)
    q = clean_q.expand(n, *clean_q.shape)
    q = _overwritten(q, stage, values, index, "q", queries)
    own = None
    if not {(index, "k"), (index, "v")}.isdisjoint(values):
        columns = window(stage.columns, queries)
        k, v = (
            _overwritten(clean.expand(n, *clean.shape), stage, values, index, letter, columns)
            for letter, clean in ((letter, cached.at(letter, index, columns)) for letter in "kv")
        )
        own = (k, v, columns)
    return cached.held("z", index, queries, _attend(cached, layer, q, queries, own))


def _added(cached: Cached, stage: Stage, layer: Layer, z: Tensor, columns: Tensor) -> Tensor:
    """What the receiving heads add beyond the clean run, [n, B, X, d]."""
    heads = groups_of(layer, at_layer(stage, layer.index))
    change = (z - cached.at("z", layer.index, columns))[..., heads, :]
    return change.flatten(-2) @ layer.output_matrix[heads].flatten(0, 1)


def _attend(cached: Cached, layer: Layer, q: Tensor, queries: Tensor, own: Own | None) -> Tensor:
    """z [n, B, X, H, D] of q [n, B, X, H, D] at `queries`: clean keys and values but for each case's own."""
    n, rows, count = q.shape[:3]
    k, v = cached.found["k", layer.index], cached.found["v", layer.index]
    length = k.shape[1]
    # Cases stand beside each other as queries of one prompt, so that they share its keys.
    together = q.transpose(0, 1).flatten(1, 2)
    scores = layer.scores(together, k).unflatten(2, (n, count))  # [B, H, n, X, T]
    index = torch.zeros(0)
    if own is not None:
        index = own[2].to(k.device)[:, None, None, None, :].expand(*scores.shape[:-1], -1)
        fresh = layer.scores(q.flatten(0, 1), own[0].flatten(0, 1)).unflatten(0, (n, rows))
        scores = scores.scatter(-1, index, fresh.permute(1, 2, 0, 3, 4))
    seen = layer.allowed(queries, torch.arange(length, device=queries.device))
    seen = (seen & cached.pairs.clean.mask[:, None, :])[:, None, None].to(k.device)
    pattern = layer.pattern(scores, seen, v.dtype)
    shared = pattern if own is None else pattern.scatter(-1, index, 0.0)
    z = layer.mix(shared.flatten(2, 3), v).unflatten(1, (n, count)).transpose(0, 1)
    if own is not None:
        fresh = pattern.gather(-1, index).permute(2, 0, 1, 3, 4).flatten(0, 1)
        z = z + layer.mix(fresh, own[1].flatten(0, 1)).unflatten(0, (n, rows))
    return z


def _project(layer: Layer, cached: Cached, stream: Tensor, columns: Tensor) -> list[Tensor]:
    """q, k and v [n, B, W, .., D] of the stream [n, B, W, d] at a block's input."""
    n, rows = stream.shape[:2]
    ids = cached.position_ids(columns).to(stream.device).expand(n, *columns.shape)
    parts = layer.project(layer.norm1(stream).flatten(0, 1), ids.flatten(0, 1))
    return [part.unflatten(0, (n, rows)) for part in parts]


def _overwritten(
    x: Tensor, stage: Stage, values: Values, layer: int, letter: str, columns: Tensor
) -> Tensor:  # fmt: skip
    """x [n, B, W, .., D] at `columns`, with what receivers of this layer and letter got."""
    if (layer, letter) not in values:
        return x
    value, inputs = values[layer, letter], stage.inputs[layer, letter]
    same = columns[:, :, None] == stage.columns[:, None, :]  # [B, W, P]
    place, rows = same.int().argmax(-1).to(x.device), torch.arange(len(columns), device=x.device)[:, None]
    active = inputs.active.to(x.device)[rows, place] & same.any(-1, keepdim=True).to(x.device)
    new = torch.where(active[..., None], value[:, rows, place], x[..., inputs.heads, :])
    x = x.clone()
    x[..., inputs.heads, :] = new
    return x


def _after(layer: Layer, cached: Cached, x: Tensor, attn: Tensor, columns: Tensor) -> Tensor:
    """The block's output, of its input and what attention adds."""
    if post_norm(layer):
        middle = layer.first_norm(x + attn)
        return layer.second_norm(middle + cached.held("mlp_out", layer.index, columns, layer.mlp(middle)))
    middle = x + attn
    written = layer.mlp(layer.norm2(middle if layer.reads_mid else x))
    return middle + cached.held("mlp_out", layer.index, columns, written)


def _pick(x: Tensor, columns: Tensor, wanted: Tensor) -> Tensor:
    """x [n, B, W, ..] at neighbouring columns [B, W], at those wanted [B, X]."""
    index = (wanted - columns[:, :1]).to(x.device)
    return x[:, torch.arange(len(index), device=x.device)[:, None], index]
