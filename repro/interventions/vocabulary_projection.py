"""Vectors of the residual stream read as tokens: E v, its ranks and its largest entries.

Source: Geva et al. 2023, arXiv 2304.14767, section 3. The vector is taken as it is: no final norm, no bias of
the unembedding. E is the input embedding, as in the released code, where embedding and unembedding are tied,
and the unembedding's weight where they are not.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from repro.interventions.lm_edits import At
from repro.interventions.lm_run import Run
from repro.models.language_model import LanguageModel

# Scores held at a time, in numbers: 64 MiB in float32.
BLOCK = 1 << 24


class Vocabulary:
    """E of a model, [V, d], and what vectors [N, d] say in it. Half precision is computed in float32.

    matrix: E; where the unembedding reads a narrower stream (OPT-350M), with that projection in it.
    says: which E it is, for reports.
    """

    def __init__(self, model: LanguageModel, block: int = BLOCK) -> None:
        matrix = model.unembedding.detach()
        half = matrix.dtype in (torch.float16, torch.bfloat16)
        self.tokens = matrix.float() if half else matrix  # [V, width of embeddings]
        self._out = None if model.project_out is None else model.project_out.weight.detach().to(self.tokens)  # type: ignore[union-attr]
        self.block = block
        tied = model.unembedding.data_ptr() == model.embedding.weight.data_ptr()  # type: ignore[union-attr]
        self.says = (
            "E: the embedding, which is also the unembedding"
            if tied
            else "E: the unembedding's weight, without its bias (not tied to the embedding)"
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def stream_vectors(self, ids: Tensor) -> Tensor:
        """Rows of E for token ids [..], as vectors of the residual stream [.., d]."""
        rows = self.tokens[ids.to(self.tokens.device)]
        return rows if self._out is None else rows @ self._out

    def scores(self, vectors: Tensor, embedded: bool = False) -> Iterator[tuple[slice, Tensor]]:
        """E v of vectors [N, d], block by block: which vectors, and their scores [n, V].

        embedded: the vectors live where the embeddings do (means of rows of E), not in the stream.
        """
        step = max(1, self.block // len(self))
        for start in range(0, len(vectors), step):
            part = vectors[start : start + step].to(self.tokens)
            if self._out is not None and not embedded:
                part = part @ self._out.T
            yield slice(start, start + len(part)), part @ self.tokens.T

    def read(self, vectors: Tensor, answer: Tensor, top: int = 0) -> tuple[Tensor, Tensor]:
        """Rank of a token in each E v [N], and the ids of the `top` highest entries [N, top].

        answer: token ids [N]. Rank 0 is the highest; tokens of equal score are in order of their ids, so that
        a vector of zeros names no token but the first.
        """
        ranks, tops = [], []
        top = min(top, len(self))
        for rows, scores in self.scores(vectors):
            wanted = answer[rows].to(scores.device)[:, None]
            ranks.append(rank_of(scores, wanted)[:, 0].cpu())
            tops.append(scores.topk(top, dim=-1).indices.cpu())
        if not ranks:
            return torch.zeros(0, dtype=torch.long), torch.zeros(0, top, dtype=torch.long)
        return torch.cat(ranks), torch.cat(tops)

    def ranks(self, vectors: Tensor, answer: Tensor) -> Tensor:
        """Rank of a token in each E v; any leading shape, of which answer [..] broadcasts."""
        flat = vectors.reshape(-1, vectors.shape[-1])
        wanted = answer.expand(vectors.shape[:-1]).reshape(-1)
        return self.read(flat, wanted)[0].view(vectors.shape[:-1])


def rank_of(scores: Tensor, tokens: Tensor) -> Tensor:
    """Places from 0 of tokens [N, C] in scores [N, V] sorted downwards, equal ones by id."""
    own = scores.gather(1, tokens)
    ids = torch.arange(scores.shape[1], device=scores.device)
    found = [
        (scores > value).sum(-1) + ((scores == value) & (ids < token)).sum(-1)
        for value, token in zip(own.T[..., None], tokens.T[..., None], strict=True)
    ]
    return torch.stack(found, dim=1)


def hidden_at(model: LanguageModel, index: int, positions: Tensor | None = None) -> At:
    """Where hidden state `index` is read: 0 is the embedding, `depth` what leaves the last block.

    The library normalises the last one: see `as_hidden`.
    """
    if index == model.depth:
        return At("resid_post", model.depth - 1, positions=positions)
    return At("resid_pre", index, positions=positions)


def as_hidden(model: LanguageModel, found: Run, place: At) -> Tensor:
    """What was read at a place of `hidden_at`; after the last block normalised, as in the library."""
    value = found[place]
    if place.site != "resid_post" or model.last_norm is None:
        return value
    with torch.no_grad():
        return model.last_norm(value)  # type: ignore[operator]
