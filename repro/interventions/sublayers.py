"""Sublayers whose update is cancelled: attention or MLPs of chosen layers.

Source: Geva et al. 2023, arXiv 2304.14767, section on subject enrichment. The text cancels updates to the
last subject position. The released code sets the MLP's hidden units to zero at all positions, so that its
output is its bias, and blocks every edge of attention with a mask. With transformers 4.30, which it pins,
such a mask erases the scores while the causal one stays: attention is uniform over what a position may see.
That is what `released` does here, explicitly; a mask that blocks everything is never made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from repro.interventions.lm_edits import At, Replace

Sublayer = Literal["MLP", "MHSA"]
How = Literal["released", "zero_subject_last", "zero_all"]
SUBLAYERS: tuple[Sublayer, ...] = ("MLP", "MHSA")


def cancelled(
    sublayer: Sublayer, how: How, layers: Sequence[int], last: Tensor, rows: Sequence[int]
) -> list[Replace]:
    """Edits that cancel a sublayer in these layers, for these rows of the batch.

    last: the last subject column of each of `rows`. Hidden units are zero where what enters the non-linearity
    is, since every family's maps zero to zero.
    """
    found = []
    for layer in layers:
        if how == "released":
            at = At("mlp_post" if sublayer == "MLP" else "attn_scores", layer, rows=list(rows))
        else:
            where = last if how == "zero_subject_last" else None
            at = At("mlp_out" if sublayer == "MLP" else "attn_out", layer, positions=where, rows=list(rows))
        found.append(Replace(at, 0.0))
    return found
