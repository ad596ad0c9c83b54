"""How much the loss of an example would change with each head's output, to first order: all heads at once.

    s_i[layer, head] = sum over positions t of | sum over channels of A * dL_i/dA |

A is a head's context vector z, before the output matrix; L_i the mean cross-entropy of the right continuation
of example i, nothing else. Source: Bansal et al. 2023, arXiv 2212.09095, section on head importance, and the
released code, in which the absolute value is taken for each position.

One backward pass of the sum of all L_i in a batch gives every s_i, since rows do not mix. Weights are frozen,
nothing below the first layer's z is differentiated, products are reduced inside the hook, and only rows of
targets are unembedded. Axes: `B` examples, `T` positions, `H` heads, `D` head width, `P` targets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from repro.data.scored_texts import Example, Ids
from repro.data.token_batch import TokenBatch
from repro.errors import UserError
from repro.interventions.lm_edits import At, Read
from repro.interventions.lm_restart import Restart
from repro.interventions.lm_run import observed, run
from repro.models.language_model import LanguageModel
from repro.models.offload import at_hand

Loss = Literal["continuation", "all_tokens", "last_token"]
Absolute = Literal["position", "example"]
SCALES = (2.0**10, 2.0**16, 2.0**22, 2.0**4, 1.0)  # tried in float16, until nothing over- or underflows
FLUSHED = 0.01  # share of gradients that may be exactly zero in float16


@dataclass(frozen=True)
class Fitted:
    """An example as the model takes it. targets: how many of its last tokens are the continuation."""

    tokens: Ids
    targets: int
    cut: int = 0

    @classmethod
    def of(cls, example: Example, most: int) -> Fitted:
        """The example with at most `most` input tokens: longer ones lose tokens from the left (`cut`)."""
        tokens = example.tokens
        cut = max(0, len(tokens) - most - 1)
        return cls(tokens[cut:], min(len(example.continuation), len(tokens) - cut - 1), cut)


@dataclass(frozen=True)
class How:
    """absolute: taken for each position, or of the sum over positions. loss: of which tokens.

    scale: what the loss is multiplied with for the backward pass (the scores are divided by it again); None:
    1, and in float16 as much as keeps gradients from becoming zero. recompute: keep the stream alone and
    compute every layer again on the way back, for memory.
    """

    absolute: Absolute = "position"
    loss: Loss = "continuation"
    scale: float | None = None
    recompute: bool = False


def importance(model: LanguageModel, examples: Sequence[Fitted], how: How) -> Float[Tensor, "B layer H"]:
    """s_i of every example, float32, or float64 if the model is. Raises `UserError` where float16 fails."""
    half = model.dtype == torch.float16
    if how.scale is not None or not half:
        scores, flushed = _at_scale(model, examples, how, how.scale or 1.0)
        _check(scores, flushed if half else 0.0, model, how.scale or 1.0)
        return scores
    tried: list[tuple[Tensor, float, float]] = []
    for scale in SCALES:
        scores, flushed = _at_scale(model, examples, how, scale)
        if bool(torch.isfinite(scores).all()) and flushed <= FLUSHED:
            return scores
        tried.append((scores, flushed, scale))
    scores, flushed, scale = tried[0]
    _check(scores, flushed, model, scale)
    return scores


def _check(scores: Tensor, flushed: float, model: LanguageModel, scale: float) -> None:
    if not bool(torch.isfinite(scores).all()):
        raise UserError(
            f"head importance: gradients are not finite (dtype {model.dtype}, loss scale {scale:g}). Give"
            " analysis.loss_scale=1, or model.dtype=bfloat16 or float32"
        )
    if flushed > FLUSHED:
        raise UserError(
            f"head importance: {100 * flushed:.1f} % of float16 gradients are exactly zero: they underflow"
            f" with loss scale {scale:g}. Give analysis.loss_scale=null (as large as needed), or"
            " model.dtype=bfloat16 or float32"
        )


def _at_scale(
    model: LanguageModel, examples: Sequence[Fitted], how: How, scale: float
) -> tuple[Tensor, float]:
    """Scores [B, layer, H], and in float16 the share of gradients that are exactly zero."""
    batch = TokenBatch.of([one.tokens[:-1] for one in examples])
    rows, columns, token, weight = _targets(examples, how.loss)
    reducers = [_Reduce(how.absolute, batch, rows, columns, layer == model.depth - 1, model.dtype)
                for layer in range(model.depth)]  # fmt: skip
    reads = [Read(At("z", layer), True, reduce) for layer, reduce in enumerate(reducers)]

    def loss_of(logits: Tensor) -> Tensor:
        wide = logits if logits.dtype == torch.float64 else logits.float()
        chance = torch.log_softmax(wide, -1).gather(1, token.to(wide.device)[:, None])[:, 0]
        return -scale * (weight.to(chance) * chance).sum()

    places = (rows, columns)
    if how.recompute:
        found = _recomputed(model, batch, reads, places, loss_of)
    else:
        done = run(model, batch, reads=reads, logits=places, gradient_of=loss_of)
        found = [done.gradient(read) for read in reads]
    zeros, counted = (sum(getattr(one, name) for one in reducers) for name in ("zeros", "counted"))
    return torch.stack([one.cpu() for one in found], dim=1) / scale, zeros / max(counted, 1)


def _targets(examples: Sequence[Fitted], loss: Loss) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Row, column that predicts, token and weight in its example's mean, of every target [P]."""
    found = []
    for row, one in enumerate(examples):
        inputs = len(one.tokens) - 1
        count = {"continuation": one.targets, "all_tokens": inputs, "last_token": 1}[loss]
        found += [(row, at, one.tokens[at + 1], 1 / count) for at in range(inputs - count, inputs)]
    rows, columns, token, weight = zip(*found, strict=True)
    return (
        torch.tensor(rows), torch.tensor(columns), torch.tensor(token),
        torch.tensor(weight, dtype=torch.float64),
    )  # fmt: skip


class _Reduce:
    """[B, H] of z and its gradient [B, T, H, D], and how many gradients are zero that should not be."""

    def __init__(
        self, absolute: Absolute, batch: TokenBatch, rows: Tensor, columns: Tensor, last: bool,
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        self._absolute, self._half = absolute, dtype == torch.float16
        self.zeros = self.counted = 0
        # In the last layer nothing but the columns of targets has a gradient.
        self._counts = torch.zeros_like(batch.mask) if last else batch.mask.clone()
        self._counts[rows, columns] = True

    def __call__(self, value: Tensor, gradient: Tensor) -> Tensor:
        if self._half:
            counting = gradient[self._counts.to(gradient.device)]
            seen = counting.flatten(1)
            # A position that no later one attends to (beyond a local layer's reach) has none at all.
            partly = seen[(seen != 0).any(1)] if bool((seen != 0).any()) else seen
            self.zeros += int((partly == 0).sum())
            self.counted += partly.numel()
        wide = torch.float64 if gradient.dtype == torch.float64 else torch.float32
        product = (value.to(wide) * gradient.to(wide)).sum(-1)  # [B, T, H]
        return product.abs().sum(1) if self._absolute == "position" else product.sum(1).abs()


def _recomputed(
    model: LanguageModel, batch: TokenBatch, reads: Sequence[Read], places: tuple[Tensor, Tensor],
    loss_of: Callable[[Tensor], Tensor],
) -> list[Tensor]:  # fmt: skip
    """The same gradients with one layer's activations at a time."""
    last = Read(At("resid_post", model.depth - 1))
    forward = Restart(model, batch, reads=[last])
    found: dict[int, Tensor] = {}
    with torch.enable_grad():
        top = forward.run[last].requires_grad_()
        rows, columns = (part.to(top.device) for part in places)
        with at_hand(model.last_norm, model.project_out, model.head):
            normed = model.final_norm(top[rows, columns]).to(model.unembedding.device)
            loss_of(model.unembed(normed)).backward()
        gradient = top.grad
        for layer in reversed(range(model.depth)):
            entered = forward.entering(layer).requires_grad_(layer > 0)
            with observed(model, [reads[layer]]) as seen:
                out = forward.block(layer, entered)
                assert gradient is not None
                torch.autograd.backward(out, gradient.to(out.device))
            found[layer], gradient = seen.gradient(reads[layer]), entered.grad
    return [found[layer] for layer in range(model.depth)]
