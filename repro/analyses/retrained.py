"""What analyses need of retrainings: whether the model can be trained again, and losses as a named array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from repro.data.token_blocks import TokenBlocks
from repro.errors import UserError
from repro.models.language_model import LanguageModel
from repro.results import NamedArray
from repro.shards import Part
from repro.training.retraining import Retraining, losses
from repro.training.tuned_store import Origin


def origin_of(model: LanguageModel, blocks: TokenBlocks) -> Origin:
    """How the model was made. Raises `UserError` for one that was not tuned here, or on other blocks."""
    origin: Origin | None = model.origin
    if origin is None:
        raise UserError(
            "model: it is trained again, which needs its start. Give model=text_organism,"
            " model=gpt2_wikitext, or any checkpoint to start from: model=gpt2_wikitext"
            " model.path=NAME_OR_DIR"
        )
    own = origin.blocks()
    if not (
        torch.equal(own.train.tokens, blocks.train.tokens)
        and torch.equal(own.query.tokens, blocks.query.tokens)
    ):
        raise UserError(
            "data: the model was tuned on other blocks. Leave model.text out, so that it is data="
        )
    return origin


def retrained_losses(
    model: LanguageModel, blocks: TokenBlocks, wanted: Sequence[Retraining], part: Part
) -> NamedArray:
    """Summed losses of the queries after the retrainings of a part, [retraining, query]."""
    found = losses(origin_of(model, blocks), part.of(wanted))
    axes: dict[str, Any] = {"retraining": len(found), "query": found.shape[1]}
    return NamedArray(found, axes, "nat")
