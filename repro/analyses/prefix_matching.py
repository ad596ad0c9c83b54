"""Prefix matching: do heads attend to what followed the current token before?

Source: Bansal et al. 2023, arXiv 2212.09095, section on induction heads, as its released code computes it;
after Olsson et al. 2022, arXiv 2209.11895.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from repro.analyses import lm_inputs as lm
from repro.analyses.induction_specs import PrefixMatching
from repro.analyses.sequence_scores import merged, result_of, sequences_of
from repro.data.token_batch import TokenBatch
from repro.data.token_sequences import TokenSequence
from repro.interventions.lm_edits import At, Read
from repro.interventions.lm_run import run as forward
from repro.models.language_model import LanguageModel
from repro.progress import progress
from repro.results import Result
from repro.shards import WHOLE, Part


def run(subject: Any, data: Any, record: Any, directory: Path | None, spec: PrefixMatching) -> Result:
    """Score of every head on every sequence: a start token, then copies of a block of L tokens.

    With positions counted from 0, the start token: the attention from j = L+1 .. R L to positions
    m L + (j mod L) + 1, m = 0 .. floor(j / L) - 1, summed, and divided by the number of these j. Those
    positions follow earlier copies of token j, except position 1 for the last token of a block (j mod L = 0),
    which is left out without `prefix.position1_quirk`. Arrays: per_sequence [sequence, layer, head], score
    and variance [layer, head], length [sequence]. Scalars: see `sequence_scores.merged`.
    """
    return merge([run_part(subject, data, directory, spec, WHOLE)], spec)


def run_part(subject: Any, data: Any, directory: Path | None, spec: PrefixMatching, part: Part) -> Result:
    """Scores on some of the sequences."""
    model = lm.model_of(subject)
    sequences = part.of(sequences_of(model, data, "repeated"))
    scores: list[np.ndarray] = []
    with progress(len(sequences), "prefix matching", "sequences") as bar:
        for rows in lm.chunks(len(sequences), spec.batch):
            scores += _scores(model, sequences[rows], spec.prefix.position1_quirk)
            bar.set(len(scores))
    result = result_of(scores, model, [len(one.tokens) for one in sequences])
    result.notes["prefix"] = "position 1 counted" if spec.prefix.position1_quirk else "position 1 not counted"
    return result


def merge(parts: Sequence[Result], spec: PrefixMatching) -> Result:
    """Means over the sequences of all parts."""
    return merged(parts)


def followers(length: int, start: int, block: int, quirk: bool) -> tuple[Tensor, Tensor]:
    """Columns of queries and of keys, pair by pair, whose attention counts; see `run`.

    length: of the sequence. start: columns before the first copy.
    """
    queries, keys = [], []
    for place in range(block + 1, length - start + 1):  # from 1, the first token of the first copy
        for copy in range(place // block):
            target = copy * block + place % block + 1
            if quirk or target > 1:
                queries.append(place)
                keys.append(target)
    shift = start - 1
    return torch.tensor(queries, dtype=torch.long) + shift, torch.tensor(keys, dtype=torch.long) + shift


def prefix_score(
    pattern: Float[Tensor, "head query key"], one: TokenSequence, quirk: bool
) -> Float[Tensor, " head"]:
    """The score of every head of one layer, in float64."""
    queries, keys = followers(len(one.tokens), one.start, one.block, quirk)
    attention = pattern[:, queries.to(pattern.device), keys.to(pattern.device)].double()
    return attention.sum(-1).cpu() / (len(one.tokens) - one.start - one.block)


def _scores(model: LanguageModel, some: Sequence[TokenSequence], quirk: bool) -> list[np.ndarray]:
    """[layer, head] of each sequence."""
    batch = TokenBatch.of([one.tokens for one in some])
    reads = [Read(At("pattern", layer), reduce=partial(_reduce, some, quirk)) for layer in range(model.depth)]
    found = forward(model, batch, reads=reads, logits=None)
    return list(torch.stack([found[read] for read in reads], dim=1).numpy())


def _reduce(some: Sequence[TokenSequence], quirk: bool, pattern: Tensor) -> Tensor:
    """[row, head] of patterns [row, head, query, key]."""
    return torch.stack([prefix_score(rows, one, quirk) for rows, one in zip(pattern, some, strict=True)])
