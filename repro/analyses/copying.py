"""Copying: does what a head writes at a token raise the token that it attends to?

Source: Bansal et al. 2023, arXiv 2212.09095, section on induction heads, as its released code computes it;
after Olsson et al. 2022, arXiv 2209.11895.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from repro.analyses import lm_inputs as lm
from repro.analyses.induction_specs import Copying
from repro.analyses.sequence_scores import merged, result_of, sequences_of
from repro.data.token_batch import TokenBatch
from repro.data.token_sequences import TokenSequence
from repro.errors import UserError
from repro.interventions.lm_edits import At
from repro.interventions.lm_run import run as forward
from repro.models.language_model import LanguageModel, Layer
from repro.progress import progress
from repro.results import Result
from repro.shards import WHOLE, Part


def run(subject: Any, data: Any, record: Any, directory: Path | None, spec: Copying) -> Result:
    """Score of every head on every sequence: a start token (position 0), then tokens 1 .. L.

    The input of every layer is the embedding, normalised as that layer does. What a head writes at token j is
    its value there through the output matrix, with the whole output bias; without the last norm it goes
    through the unembedding and a softmax. With a the probabilities of the tokens at positions 0 .. j, r =
    relu(a - mean(a)) and m the position that j attends to most, the score is the mean over j of r[m] /
    sum(r) (0 where all are 0). The softmax's sum over the vocabulary cancels in that quotient, so only
    logits of the sequence's own tokens are computed. Arrays and scalars as of prefix matching.
    """
    return merge([run_part(subject, data, directory, spec, WHOLE)], spec)


def run_part(subject: Any, data: Any, directory: Path | None, spec: Copying, part: Part) -> Result:
    """Scores on some of the sequences."""
    model = lm.model_of(subject)
    if getattr(model.layers[0], "post_norm", False) or model.project_out is not None:
        raise UserError(
            "analysis: copying is defined for models whose layers begin with their norm; this one (OPT-350M's"
            " kind) ends with it. Choose another size"
        )
    sequences = part.of(sequences_of(model, data, "distinct"))
    scores = []
    with progress(len(sequences) * model.depth, "copying", "layers") as bar:
        for one in sequences:
            tokens = torch.tensor(one.tokens)
            embedded = _embedded(model, one)
            layers = []
            for layer in model.layers:
                layers.append(_layer(model, layer, embedded, tokens, spec.copying.source))
                bar.advance()
            values = torch.stack(layers)
            scores.append((2 * values - 1 if spec.copying.scale == "signed" else values).numpy())
    result = result_of(scores, model, [len(one.tokens) for one in sequences])
    result.notes["copying"] = f"{spec.copying.source}, {spec.copying.scale} scores"
    return result


def merge(parts: Sequence[Result], spec: Copying) -> Result:
    """Means over the sequences of all parts."""
    return merged(parts)


def copying_score(
    logits: Float[Tensor, "head query token"], pattern: Float[Tensor, "head query key"]
) -> Float[Tensor, " head"]:
    """The score of heads, in float64: see `run`.

    logits: of what each head writes at a position (row) for the sequence's own tokens, in order.
    """
    length = logits.shape[-1]
    seen = torch.ones(length, length, dtype=torch.bool, device=logits.device).tril()
    wide = torch.where(seen, logits.double(), -torch.inf)
    # Up to a factor for each row, which cancels: the probabilities of the softmax over all tokens.
    chance = torch.exp(wide - wide.amax(-1, keepdim=True))
    mean = chance.sum(-1, keepdim=True) / seen.sum(-1, keepdim=True)
    raised = torch.where(seen, (chance - mean).clamp(min=0), 0.0)
    most = torch.where(seen, pattern.double(), -torch.inf).argmax(-1, keepdim=True)
    total = raised.sum(-1)
    share = raised.gather(-1, most)[..., 0] / torch.where(total > 0, total, 1.0)
    return share[:, 1:].mean(-1).cpu()


def _embedded(model: LanguageModel, one: TokenSequence) -> Tensor:
    """Token and position embeddings [1, T, d], as they enter the first layer."""
    place = At("embedding")
    return forward(model, TokenBatch.of([one.tokens]), reads=[place], logits=None)[place]


@torch.no_grad()
def _layer(
    model: LanguageModel, layer: Layer, embedded: Tensor, tokens: Int[Tensor, " T"], source: str
) -> Tensor:
    """The score of every head of a layer, [head]."""
    device = layer.output_matrix.device
    here, columns = embedded.to(device), torch.arange(len(tokens), device=device)
    q, k, v = layer.project(layer.norm1(here), columns[None])
    pattern = layer.pattern(layer.scores(q, k), layer.allowed(columns[None], columns[None])[:, None])
    if source == "attention_output":
        z = layer.mix(pattern, v)[0]
    else:
        z = v[0].repeat_interleave(layer.heads // layer.kv_heads, dim=1)
    vectors = model.unembedding[tokens.to(model.unembedding.device)].to(device)
    through = torch.einsum("hcd,td->hct", layer.output_matrix, vectors)
    logits = torch.einsum("qhc,hct->hqt", z, through)
    shift = _shift(model, layer, vectors, tokens)
    return copying_score(logits if shift is None else logits + shift, pattern[0])


def _shift(model: LanguageModel, layer: Layer, vectors: Tensor, tokens: Tensor) -> Tensor | None:
    """What the output bias and the unembedding's bias add to the logits of each token, [T]."""
    parts = []
    if layer.output_bias is not None:
        parts.append(vectors @ layer.output_bias)
    if model.unembedding_bias is not None:
        parts.append(model.unembedding_bias[tokens.to(model.unembedding_bias.device)].to(vectors.device))
    return sum(parts[1:], parts[0]) if parts else None
