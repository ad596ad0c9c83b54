"""What a vector in the residual stream adds to chosen logits directly, past the final norm.

Three conventions (`norm`): `frozen` keeps the final norm's scale as it was in the run, so that all parts sum
to the logit; `folded` has the norm's gain and centring and no scale; `ignored` is the bare unembedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from repro.errors import UserError
from repro.models.language_model import LanguageModel


@torch.no_grad()
def readout(model: LanguageModel, resid: Tensor, columns: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """Vectors [B, C, d], whose products with parts of the stream are their shares; constants [B, C].

    resid: last residual stream at the position in question, [B, d]. columns: tokens, [B, C]. What is
    returned is float64 on the CPU. Constants are what no part of the stream adds: biases of the final norm
    and of the unembedding.
    Raises `UserError` for a final norm that is neither a layer norm nor an RMS norm.
    """
    vectors = _float64(model.unembedding[columns.to(model.unembedding.device)])
    constants = vectors.new_zeros(columns.shape)
    if model.unembedding_bias is not None:
        constants = _float64(model.unembedding_bias)[columns]
    if model.project_out is not None:
        vectors = vectors @ _float64(model.project_out.weight)
    last = model.last_norm
    if norm == "ignored" or last is None:
        return vectors, constants
    centred = isinstance(last, nn.LayerNorm)
    if not centred and not type(last).__name__.endswith("RMSNorm"):
        raise UserError(
            f"analysis.norm: the final norm is a {type(last).__name__}; LayerNorm and RMSNorm can be"
            " attributed through. Choose analysis.norm=ignored"
        )
    if getattr(last, "bias", None) is not None:
        constants = constants + vectors @ _float64(last.bias)
    vectors = vectors * _float64(last.weight)
    if centred:
        vectors = vectors - vectors.mean(-1, keepdim=True)
    if norm == "frozen":
        vectors = vectors / _scale(last, _float64(resid), centred)[:, None]
    return vectors, constants


def _float64(values: Any) -> Tensor:
    return values.detach().cpu().double()


def _scale(last: nn.Module, resid: Tensor, centred: bool) -> Tensor:
    """What the norm divides by, [B, 1]."""
    norm: Any = last
    eps = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
    if centred:
        resid = resid - resid.mean(-1, keepdim=True)
    return (resid.square().mean(-1, keepdim=True) + eps).sqrt()
