"""Random tokens, repeated: sequences on which a head's attention to earlier copies can be read.

A block of `length` random ids stands `repeats` times in a row (source: Wang et al. 2022, arXiv 2211.00593,
appendix on heads outside the task: 100 ids, twice).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import torch

from repro.data.text_specs import RandomTokens
from repro.data.token_batch import TokenBatch
from repro.errors import UserError


@dataclass(frozen=True)
class RepeatedTokens:
    """The recipe of such sequences; `batch` makes them for a vocabulary.

    start: column of the first random token (1 behind a start token). length: of the block.
    """

    spec: RandomTokens
    source: str
    sha256: str
    kind: str = "random_tokens"
    is_published: bool = True

    @property
    def start(self) -> int:
        """Columns before the first copy."""
        return 0 if self.spec.bos is None else 1

    @property
    def length(self) -> int:
        """Tokens of one copy."""
        return self.spec.length

    def batch(self, vocabulary: int) -> TokenBatch:
        """The sequences, (n, start + repeats * length). vocabulary: number of the model's tokens.

        Raises `UserError` where the range of ids does not fit the vocabulary, or is too small for
        `distinct` ids.
        """
        spec = self.spec
        high = vocabulary if spec.high is None else spec.high
        if not spec.low < high <= vocabulary or (spec.bos or 0) >= vocabulary:
            raise UserError(
                f"data.low, data.high, data.bos: expected low < high <= {vocabulary}, the model's vocabulary,"
                f" and bos below it; got {spec.low}, {high}, {spec.bos}. Give e.g. data.low=0 data.high=null"
            )
        if spec.distinct and high - spec.low < spec.length:
            raise UserError(
                f"data.distinct: {spec.length} distinct ids do not fit into the range from {spec.low} to"
                f" {high - 1}. Give data.length={high - spec.low} or a larger range"
            )
        generator = torch.Generator().manual_seed(spec.seed)
        if spec.distinct:
            rows = [
                torch.randperm(high - spec.low, generator=generator)[: spec.length] for _ in range(spec.n)
            ]
            block = torch.stack(rows) + spec.low
        else:
            block = torch.randint(spec.low, high, (spec.n, spec.length), generator=generator)
        tokens = block.repeat(1, spec.repeats)
        if spec.bos is not None:
            tokens = torch.cat([torch.full((spec.n, 1), spec.bos), tokens], dim=1)
        return TokenBatch(tokens, torch.ones_like(tokens, dtype=torch.bool))


def load(spec: RandomTokens) -> RepeatedTokens:
    """The recipe; its checksum is that of the settings, since ids are drawn for a model's vocabulary."""
    settings = json.dumps(spec.model_dump(mode="json"), sort_keys=True)
    upper = "the vocabulary" if spec.high is None else spec.high
    source = (
        f"{spec.n} x {spec.length} ids from {spec.low} to {upper}, {spec.repeats} copies, seed {spec.seed}"
    )
    return RepeatedTokens(spec, source, hashlib.sha256(settings.encode()).hexdigest())
