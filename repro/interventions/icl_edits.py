"""What each manipulation does to the sites of the forward pass (sheet C.12), one function a kind.

An edit replaces a whole value where it can, and not entry by entry under a full mask: what nothing reads
any more is then no part of the compiled program. Nothing here stops a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from repro.errors import UserError
from repro.interventions import icl_patterns, specs
from repro.models.icl_transformer import Edit, Place

FORBIDDEN = -1e9  # as published: smaller than any score or logit, but larger than what causality masks


class Situation(NamedTuple):
    """What edits are computed from.

    base: values of the untouched run, at the places that `reads` has named.
    """

    labels: Int[Array, "batch item"]
    examples: Float[Array, "batch item dim"] | None
    base: Mapping[Place, Array]
    depth: int

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return 2 * self.labels.shape[1] - 1


def reads(manipulation: specs.Manipulation, depth: int) -> set[Place]:
    """Places of the untouched run that a manipulation needs."""
    match manipulation:
        case specs.Preserve():
            return {(site, layer) for site in manipulation.sites for layer in range(depth)}
        case specs.HeadTemperature(temperatures=temperatures) if temperatures:
            return {("attn_scores", specs.split_head(next(iter(temperatures)))[0])}
        case specs.PerfectCopy():
            return {("attn_scores", specs.split_head(manipulation.head)[0])}
        case _:
            return set()


def edits(manipulation: specs.Manipulation, situation: Situation) -> dict[Place, Edit]:
    """The edits of one manipulation within one forward pass; none for what needs several models."""
    make = _EDITS.get(type(manipulation))
    return {} if make is None else make(manipulation, situation)


def replace_by(new: Array) -> Edit:
    """Put `new`, which has the token positions of the edited value, in its place."""

    def edit(value: Array, _: np.ndarray) -> Array:
        return _as(new, value)

    return edit


def overwrite(value: Array, new: Any, touched: np.ndarray) -> Array:
    """`new` where `touched`, both broadcast to `value`; the value itself where nothing is touched."""
    if touched.all():
        return _as(new, value)
    return value if not touched.any() else jnp.where(touched, jnp.asarray(new, value.dtype), value)


def _as(new: Any, value: Array) -> Array:
    return jnp.broadcast_to(jnp.asarray(new, value.dtype), value.shape)


def _by_layer(heads: Iterable[str]) -> dict[int, list[int]]:
    layers: dict[int, list[int]] = {}
    for layer, head in map(specs.split_head, heads):
        layers.setdefault(layer, []).append(head)
    return layers


def _chosen(heads: list[int], count: int) -> Bool[np.ndarray, " head"]:
    return np.isin(np.arange(count), heads)


def _attention_edits(
    site: str,
    heads: Iterable[str],
    touched: Bool[np.ndarray, "query key"],
    new: Callable[[np.ndarray], Any],
) -> dict[Place, Edit]:
    """Replace the `touched` entries of heads' attention maps by `new(positions of the queries)`."""

    def edit_of(chosen: list[int]) -> Edit:
        def edit(value: Array, positions: np.ndarray) -> Array:
            mask = _chosen(chosen, value.shape[1])[:, None, None] & touched[positions]
            return overwrite(value, new(positions), np.broadcast_to(mask, value.shape[1:]))

        return edit

    return {(site, layer): edit_of(chosen) for layer, chosen in _by_layer(heads).items()}


def _preserve(manipulation: specs.Preserve, situation: Situation) -> dict[Place, Edit]:
    places = reads(manipulation, situation.depth)
    return {place: replace_by(situation.base[place]) for place in places}


def _head_temperature(manipulation: specs.HeadTemperature, situation: Situation) -> dict[Place, Edit]:
    edits: dict[Place, Edit] = {}
    for place in reads(manipulation, situation.depth):
        base = situation.base[place]
        divisor = np.ones(base.shape[1])
        for head, temperature in manipulation.temperatures.items():
            divisor[specs.split_head(head)[1]] = temperature
        edits[place] = replace_by(base / jnp.asarray(divisor, base.dtype)[:, None, None])
    return edits


def _perfect_copy(manipulation: specs.PerfectCopy, situation: Situation) -> dict[Place, Edit]:
    layer, head = specs.split_head(manipulation.head)
    return {("logits", None): copy_scores(situation, situation.base["attn_scores", layer][:, head])}


def copy_scores(situation: Situation, scores: Float[Array, "batch query key"]) -> Edit:
    """Make the query's logits of context labels its scores on them (the later, of equal labels)."""
    labels, last = situation.labels, situation.length - 1

    def edit(value: Array, positions: np.ndarray) -> Array:
        logits = jnp.full((value.shape[0], 1, value.shape[-1]), FORBIDDEN, value.dtype)
        for pair in range(labels.shape[1] - 1):
            is_label = jnp.arange(value.shape[-1]) == labels[:, pair, None, None]
            logits = jnp.where(is_label, scores[:, -1, 2 * pair + 1, None, None], logits)
        return overwrite(value, logits, (positions == last)[:, None])

    return edit


def _ablate_embedding(_: specs.AblateEmbedding, __: Situation) -> dict[Place, Edit]:
    return {("token_embedding", None): lambda value, _: jnp.zeros_like(value)}


def _ablate_heads(manipulation: specs.AblateHeads, _: Situation) -> dict[Place, Edit]:
    def edit_of(heads: list[int]) -> Edit:
        return lambda value, _: overwrite(value, 0, _chosen(heads, value.shape[2])[:, None])

    return {("v", layer): edit_of(heads) for layer, heads in _by_layer(manipulation.heads).items()}


def _previous_token_heads(manipulation: specs.PreviousTokenHeads, situation: Situation) -> dict[Place, Edit]:
    length = situation.length
    pattern = icl_patterns.previous_token_pattern(length, manipulation.strength)
    touched = _queries(length, np.arange(1, length, 2) if manipulation.only_label else np.arange(length))
    return _attention_edits("pattern", manipulation.heads, touched, lambda positions: pattern[positions])


def _induction_heads(manipulation: specs.InductionHeads, situation: Situation) -> dict[Place, Edit]:
    row = icl_patterns.induction_row(situation.labels, manipulation.strength)
    return _query_row_edits(manipulation.heads, row, situation.length)


def _match_heads(manipulation: specs.MatchHeads, situation: Situation) -> dict[Place, Edit]:
    if situation.examples is None:
        raise UserError(
            "match_heads: needs the features themselves, got projected ones. Give Inputs.examples"
        )
    row = icl_patterns.match_row(situation.examples, manipulation.temperature)
    return _query_row_edits(manipulation.heads, row, situation.length)


def _query_row_edits(heads: list[str], row: Float[Array, "batch key"], length: int) -> dict[Place, Edit]:
    touched = _queries(length, np.array([length - 1]))
    return _attention_edits("pattern", heads, touched, lambda _: row[:, None, None, :])


def _queries(length: int, rows: np.ndarray) -> Bool[np.ndarray, "query key"]:
    return np.broadcast_to(np.isin(np.arange(length), rows)[:, None], (length, length))


def _forbid_previous_token(
    manipulation: specs.ForbidPreviousToken, situation: Situation
) -> dict[Place, Edit]:
    touched = np.eye(situation.length, k=-1, dtype=bool)
    if manipulation.only_label:
        touched[0::2] = False
    return _attention_edits("attn_scores", manipulation.heads, touched, lambda _: FORBIDDEN)


def _silence_non_label(manipulation: specs.SilenceNonLabel, situation: Situation) -> dict[Place, Edit]:
    touched = np.zeros((situation.length, situation.length), bool)
    touched[-1, 0::2] = True
    heads = [
        head if isinstance(head, str) else f"{situation.depth - 1}:{head}" for head in manipulation.heads
    ]
    return _attention_edits("attn_scores", heads, touched, lambda _: FORBIDDEN)


_EDITS: dict[type[specs.Manipulation], Callable[[Any, Situation], dict[Place, Edit]]] = {
    specs.Preserve: _preserve,
    specs.HeadTemperature: _head_temperature,
    specs.PerfectCopy: _perfect_copy,
    specs.AblateEmbedding: _ablate_embedding,
    specs.AblateHeads: _ablate_heads,
    specs.PreviousTokenHeads: _previous_token_heads,
    specs.InductionHeads: _induction_heads,
    specs.MatchHeads: _match_heads,
    specs.ForbidPreviousToken: _forbid_previous_token,
    specs.SilenceNonLabel: _silence_non_label,
}
