"""Forward and backward passes over blocks: the gradient of a summed loss with respect to modules' outputs.

The loss of a block is the sum, not the mean, over its positions: gradients of blocks add up over a batch.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repro.analyses.influence.modules import Tracked, watched
from repro.analyses.influence_specs import InfluenceAnalysis
from repro.data.token_batch import TokenBatch
from repro.data.token_blocks import Blocks
from repro.errors import UserError
from repro.models.language_model import LanguageModel

START = 64  # blocks of a batch to begin with, halved while memory does not suffice
TOKENS = 4096  # of a batch on a CPU, where larger ones save nothing
LOGITS, GPU_LOGITS = 2**23, 2**27  # numbers of logits at a time, on a CPU and on a GPU
# What the loss asks for: the next token (None), whole numbers instead, or uniform ones to draw labels with.
Labels = Tensor | None


@contextmanager
def precision(model: LanguageModel, dtype: str) -> Iterator[None]:
    """Within it the model computes in `dtype`; afterwards its weights are the very same as before.

    bfloat16: weights in float32 and autocast.
    """
    wanted = torch.float64 if dtype == "float64" else torch.float32
    held: list[tuple[Tensor, Tensor]] = []
    for tensor in itertools.chain(model.hf.parameters(), model.hf.buffers()):
        if tensor.is_floating_point() and tensor.dtype != wanted:
            held.append((tensor, tensor.data))
            tensor.data = tensor.data.to(wanted)
    half = torch.autocast(model.device.type, torch.bfloat16) if dtype == "bfloat16" else nullcontext()
    try:
        with half:
            yield
    finally:
        for tensor, data in held:
            tensor.data = data


def computed_in(settings: InfluenceAnalysis) -> torch.dtype:
    """Of activations, gradients and factors."""
    return getattr(torch, settings.dtype)


def uniforms(seed: int, stage: str, blocks: int, length: int) -> Tensor:
    """Numbers in [0, 1), one for every label to be drawn, [blocks, length - 1], whatever the batches."""
    stream = np.random.default_rng([seed, *stage.encode()])
    return torch.from_numpy(stream.random((blocks, length - 1)))


class Gradients:
    """Takes gradients of blocks' losses, or of queries' measurements.

    each: gets a module's number, its input a [B, T, features] and its output's gradient g [B, T, outputs], in
    the dtype of the computation. The last position's g is 0, and so is g (and a) where a block is padding.
    """

    def __init__(
        self,
        model: LanguageModel,
        tracked: Sequence[Tracked],
        settings: InfluenceAnalysis,
        measured: bool = False,
    ) -> None:
        self.model, self.tracked = model, list(tracked)
        self.kind, self.measurement = computed_in(settings), settings.measurement if measured else "loss"

    def take(
        self, blocks: Blocks, each: Callable[[int, Tensor, Tensor], None], labels: Labels = None
    ) -> None:
        """One batch. labels: [B, T - 1], whole numbers, or uniform ones to draw the labels with."""
        rows, length = blocks.tokens.shape
        mask = blocks.mask
        seen: set[int] = set()

        def sink(number: int, a: Tensor, g: Tensor) -> None:
            if number in seen:
                raise UserError(f"analysis.modules: {self.tracked[number].name} is used twice in one pass")
            seen.add(number)
            a, g = a.reshape(rows, length, -1), g.reshape(rows, length, -1)
            if mask is not None:
                a = a.masked_fill(~mask[..., None].to(a.device), 0)
            each(number, a.to(self.kind), g.to(self.kind))

        with torch.enable_grad(), watched(self.tracked, sink):
            hidden = self._hidden(blocks)
            above = self._at_head(hidden.detach(), blocks, labels)
            if not bool(torch.isfinite(above).all()):
                raise not_finite("the gradient of the loss")
            with torch.no_grad():
                torch.autograd.backward(hidden, above)

    def _hidden(self, blocks: Blocks) -> Tensor:
        arguments: dict[str, Any] = {}
        if blocks.mask is not None:
            batch = TokenBatch(blocks.tokens, blocks.mask)
            arguments = {
                "attention_mask": batch.mask.to(self.model.device).long(),
                "position_ids": batch.position_ids.to(self.model.device),
            }
        tokens = blocks.tokens.to(self.model.device)
        return self.model.hf.base_model(input_ids=tokens, use_cache=False, **arguments).last_hidden_state

    def _at_head(self, hidden: Tensor, blocks: Blocks, labels: Labels) -> Tensor:
        """Gradient of the summed measurement with respect to what the unembedding reads, [B, T, d].

        Some rows of logits at a time, of which one softmax gives drawn labels and gradient alike.
        """
        above = torch.zeros_like(hidden)
        wanted = (blocks.tokens[:, 1:] if labels is None else labels).to(hidden.device)
        counts = None
        if blocks.mask is not None:
            mask = blocks.mask.to(hidden.device)
            counts = mask[:, :-1] & mask[:, 1:]
        most = GPU_LOGITS if hidden.is_cuda else LOGITS
        size = max(1, most // (self.model.vocabulary * hidden.shape[1]))
        for rows in torch.arange(len(hidden)).split(size):
            read = hidden[rows, :-1].detach().requires_grad_()
            with torch.enable_grad():
                logits = self.model.head(read)
            slope = self._slope(logits.detach(), wanted[rows])
            if counts is not None:
                slope.masked_fill_(~counts[rows, :, None], 0)
            above[rows, :-1] = torch.autograd.grad(logits, read, slope.to(logits.dtype))[0]
        return above

    def _slope(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """Derivative of the measurement by the logits [B, T - 1, V]; see `InfluenceAnalysis`.

        loss = -log p(label): p - 1[label]. margin = -log(p / (1 - p)): the same, p being over the others.
        """
        logits = logits.float() if logits.dtype != torch.float64 else logits
        share = None
        if wanted.is_floating_point():
            share = logits.softmax(-1)
            wanted = drawn(share, wanted)
        at = wanted[..., None]
        if self.measurement == "margin":
            logits, share = logits.scatter(-1, at, -torch.inf), None
        share = logits.softmax(-1) if share is None else share
        slope = share.scatter_add_(-1, at, torch.full_like(share[..., :1], -1.0).expand(at.shape))
        return slope.neg_() if self.measurement == "log_probability" else slope


def drawn(share: Tensor, uniform: Tensor) -> Tensor:
    """Labels with these probabilities [.., V]: where the cumulated ones pass the uniform number [..]."""
    cumulated = share.cumsum(-1)
    threshold = uniform[..., None].to(share.dtype) * cumulated[..., -1:]
    return torch.searchsorted(cumulated, threshold, right=True)[..., 0].clamp_(max=share.shape[-1] - 1)


def in_batches(size: int | str, length: int, work: Callable[[int], Any], key: str) -> Any:
    """work(batch size), begun anew with half of it whenever memory does not suffice.

    size: a number, or auto: 64 to begin with, of short blocks; length: tokens of a block. Raises `UserError`
    if one block is too much.
    """
    most = START if torch.cuda.is_available() else max(1, TOKENS // length)
    batch = min(START, most) if size == "auto" else int(size)
    while True:
        try:
            return work(batch)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            said = str(error).splitlines()[0]
        if batch == 1:
            raise UserError(
                f"analysis.{key}: memory does not suffice for one block ({said}). Give shorter blocks, fewer"
                " analysis.modules, more analysis.module_partitions, or analysis.query_accumulation=1"
            )
        batch //= 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _out_of_memory(error: BaseException) -> bool:
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        word in str(error).lower() for word in words
    )


def not_finite(what: str) -> UserError:
    """The message for NaN and infinities."""
    return UserError(
        f"{what} is not finite. Check the checkpoint's weights, or give analysis.dtype=float32 (float64)"
    )
