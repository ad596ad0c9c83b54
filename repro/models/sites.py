"""The vocabulary of places in a model where activations are read and overridden, for both frameworks.

Axes: `batch`, `position` (token), `item` (exemplar-label pair, query last), `head`, `query` and `key`
(token positions of an attention pattern), `layer` (0-based), `channel` (a vector's own dimension).
`head_channel` is a head's share of the residual stream. Names follow the field's use: the residual
stream before a block is `resid_pre`, after attention `resid_mid`, after the block `resid_post`; a
head's output before the output projection is `z`.
"""

from __future__ import annotations

from typing import NamedTuple

from repro.errors import UserError


class Site(NamedTuple):
    """One place: its axes in order, whether each layer has one, and what it holds."""

    axes: tuple[str, ...]
    per_layer: bool
    says: str


_STREAM = ("batch", "position", "channel")
_HEAD = ("batch", "position", "head", "head_channel")
_EDGE = ("batch", "head", "query", "key")

SITES: dict[str, Site] = {
    "example_embedding": Site(("batch", "item", "channel"), False, "exemplar features, projected"),
    "label_embedding": Site(
        ("batch", "item", "channel"), False, "labels, embedded (the query's is not used)"
    ),
    "token_embedding": Site(_STREAM, False, "exemplars and labels, interleaved"),
    "position_embedding": Site(("position", "channel"), False, "added positions; zero with rotary ones"),
    "embedding": Site(_STREAM, False, "token plus position embedding"),
    "resid_pre": Site(_STREAM, True, "residual stream that enters the block"),
    "attn_in": Site(_STREAM, True, "what attention reads: resid_pre, normalised"),
    "q_unrotated": Site(_HEAD, True, "queries before rotary positions"),
    "k_unrotated": Site(_HEAD, True, "keys before rotary positions"),
    "q": Site(_HEAD, True, "queries"),
    "k": Site(_HEAD, True, "keys"),
    "v": Site(_HEAD, True, "values"),
    "attn_scores": Site(_EDGE, True, "scaled and causally masked scores, before the softmax"),
    "pattern": Site(_EDGE, True, "attention pattern: rows sum to 1"),
    "z": Site(_HEAD, True, "head outputs: pattern times values, before the output projection"),
    "attn_out": Site(_STREAM, True, "what attention adds to the residual stream"),
    "resid_mid": Site(_STREAM, True, "residual stream between attention and MLP"),
    "mlp_in": Site(_STREAM, True, "what the MLP reads: resid_mid, normalised"),
    "mlp_post": Site(("batch", "position", "hidden"), True, "MLP hidden units after the nonlinearity"),
    "mlp_out": Site(_STREAM, True, "what the MLP adds to the residual stream"),
    "resid_post": Site(_STREAM, True, "residual stream that leaves the block"),
    "final_norm": Site(_STREAM, False, "last residual stream, normalised"),
    "logits": Site(("batch", "position", "output"), False, "unnormalised log-probabilities at every token"),
}


def check_site(name: str, layer: int | None, depth: int) -> None:
    """Refuse a site that does not exist, or a layer that the model does not have."""
    site = SITES.get(name)
    if site is None:
        raise UserError(f"site: got {name!r}. Valid choices: {', '.join(SITES)}")
    if site.per_layer != (layer is not None):
        raise UserError(
            f"site {name}: {'a layer is required' if site.per_layer else 'it has no layer'}, got {layer!r}"
        )
    if layer is not None and not 0 <= layer < depth:
        raise UserError(f"site {name}: layer {layer} does not exist. Valid layers: 0 to {depth - 1}")
