"""What weights say in tokens: attributes that heads hold for a subject's token, and what MLP units promote.

Source: Geva et al. 2023, arXiv 2304.14767, section on attribute extraction and appendix; Dar et al. 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repro.analyses import extraction_statistics as statistics
from repro.analyses import lm_inputs as lm
from repro.analyses.attribute_specs import VocabularyWeights
from repro.analyses.fact_inputs import Asked, ask, common_arrays, common_scalars
from repro.analyses.head_specs import split_head
from repro.errors import UserError
from repro.interventions.lm_edits import At
from repro.interventions.lm_run import run as forward
from repro.interventions.vocabulary_projection import Vocabulary
from repro.interventions.weight_rows import looked_for, values, written
from repro.models.language_model import LanguageModel
from repro.progress import progress
from repro.results import NamedArray, Result
from repro.shards import WHOLE, Part, join


def run(subject: Any, data: Any, record: Any, directory: Path | None, spec: VocabularyWeights) -> Result:
    """Ranks of answers in the rows of W_VO of the subject's last token, where attention extracts the answer.

    Arrays: head_rank [prompt, layer, head], of the answer in E W_VO E^T at the row of the subject's last
    token, -1 in layers whose attention output does not name the answer; head_cases [layer, head], cases in
    which the head has it below `spec.cut`; mapped [cut], % of cases (prompt, layer) with a head that has;
    mapped_by_chance [cut], the same if every head ranked tokens at random.
    With units: unit_layer, unit_index, unit_weight [prompt, unit], the MLP units of highest |m| |v| at the
    last subject position (m: activation, v: value vector), and unit_words [prompt, unit, rank]; -1 and empty
    but for the first prompts. With words: writes_words and looks_for_words [word, head, rank], of W_VO and
    W_QK. Scalars: cases; mapped.CUT (%); mapped, that of `spec.cut`; and the common ones.
    """
    return merge([run_part(subject, data, directory, spec, WHOLE)], spec)


def run_part(subject: Any, data: Any, directory: Path | None, spec: VocabularyWeights, part: Part) -> Result:
    """Ranks and units of some of the prompts."""
    model = lm.model_of(subject)
    words = _word_ids(model, spec.words)
    chosen = [split_head(one) for one in spec.heads or ()]
    for layer, head in chosen:
        model.check_head(layer, head, "analysis.heads")
    asked = ask(model, data, part, spec.batch)
    vocabulary = Vocabulary(model)
    ranks = torch.full((len(asked), model.depth, model.heads), -1, dtype=torch.int32)
    with progress(len(asked), "weights as tokens", "prompts") as bar:
        for index, rows in asked.batches(spec.batch):
            ranks[index] = _head_ranks(model, vocabulary, rows)
            bar.advance(len(index))
    prompts: dict[str, Any] = {"prompt": len(asked)}
    axes = {**prompts, "layer": list(range(model.depth)), "head": model.heads}
    chance = [100 * (1 - (1 - min(1.0, cut / model.vocabulary)) ** model.heads) for cut in spec.cuts]
    arrays = {
        **common_arrays(asked),
        "head_rank": lm.array(ranks, axes),
        "mapped_by_chance": NamedArray(np.array(chance), {"cut": list(spec.cuts)}, "%"),
    }
    if spec.units and spec.examples:
        arrays.update(_units(model, vocabulary, asked, spec))
    if words:
        heads = chosen or [(i, j) for i in range(model.depth) for j in range(model.heads)]
        arrays.update(_rows(model, vocabulary, words, heads, spec.top))
    return Result({}, arrays, statistics.said(vocabulary))


def merge(parts: Sequence[Result], spec: VocabularyWeights) -> Result:
    """Shares of cases, and heads by how many they have."""
    result = join(parts, "prompt", add=["asked"])
    arrays, scalars = result.arrays, result.scalars
    scalars.update(common_scalars(arrays))
    rank = arrays["head_rank"]
    case = rank.values[..., 0] >= 0
    best = rank.values.min(-1)[case]
    shares = [100 * float((best < cut).mean()) if len(best) else float("nan") for cut in spec.cuts]
    arrays["mapped"] = NamedArray(np.array(shares), {"cut": list(spec.cuts)}, "%")
    has = (rank.values >= 0) & (rank.values < spec.cut)
    axes = {name: rank.axes[name] for name in ("layer", "head")}
    arrays["head_cases"] = NamedArray(has.sum(0), axes)
    scalars["cases"] = float(case.sum())
    scalars.update({f"mapped.{cut}": share for cut, share in zip(spec.cuts, shares, strict=True)})
    scalars["mapped"] = scalars[f"mapped.{spec.cut}"]
    _tell(result)
    return result


def _head_ranks(model: LanguageModel, vocabulary: Vocabulary, asked: Asked) -> Tensor:
    """Ranks [B, layer, head]; -1 in layers that do not extract."""
    facts, answer = asked.facts, asked.answer
    places = [At("attn_out", layer, positions=facts.end) for layer in range(model.depth)]
    found = forward(model, facts.batch, reads=places, logits=None)
    ranks = torch.full((len(facts), model.depth, model.heads), -1, dtype=torch.int32)
    tokens = facts.batch.tokens[torch.arange(len(facts)), facts.last]
    for layer, place in zip(model.layers, places, strict=True):
        cases = (vocabulary.ranks(found[place][:, 0], answer) == 0).nonzero().flatten()
        if len(cases):
            rows = vocabulary.stream_vectors(tokens[cases]).to(model.dtype)
            own = vocabulary.ranks(written(layer, rows), answer[cases, None])
            ranks[cases, layer.index] = own.int()
    return ranks


def _units(
    model: LanguageModel, vocabulary: Vocabulary, asked: Asked, spec: VocabularyWeights
) -> dict[str, NamedArray]:
    """The strongest MLP units of the prompts that are examples."""
    count = min(spec.units, model.depth * model.mlp_width)
    shape = (len(asked), count)
    layers, units = np.full(shape, -1), np.full(shape, -1)
    weights, words = np.full(shape, -1.0), np.full((*shape, spec.top), "", dtype=object)
    shown = (asked.facts.number < spec.examples).nonzero().flatten()
    if len(shown):
        facts = asked.rows(shown).facts
        places = [At("mlp_post", layer, positions=facts.last) for layer in range(model.depth)]
        found = forward(model, facts.batch, reads=places, logits=None)
        sizes = [
            found[place][:, 0].abs() * values(layer).norm(dim=-1)
            for layer, place in zip(model.layers, places, strict=True)
        ]
        best = torch.stack(sizes, 1).flatten(1).topk(count, dim=-1)
        rows = shown.numpy()
        weights[rows] = best.values.float().cpu().numpy()
        layers[rows] = (best.indices // model.mlp_width).cpu().numpy()
        units[rows] = (best.indices % model.mlp_width).cpu().numpy()
        for row in rows:
            vectors = [values(model.layers[i])[j] for i, j in zip(layers[row], units[row], strict=True)]
            words[row] = _top_words(model, vocabulary, torch.stack(vectors), spec.top)
    axes: dict[str, Any] = {"prompt": len(asked), "unit": count}
    return {
        "unit_layer": NamedArray(layers, axes),
        "unit_index": NamedArray(units, axes),
        "unit_weight": NamedArray(weights, axes),
        "unit_words": NamedArray(words.astype(np.str_), {**axes, "rank": spec.top}),
    }


def _rows(
    model: LanguageModel,
    vocabulary: Vocabulary,
    words: dict[str, int],
    heads: Sequence[tuple[int, int]],
    top: int,
) -> dict[str, NamedArray]:
    """Top tokens of the rows of W_VO and W_QK of some tokens, for some heads."""
    rows = vocabulary.stream_vectors(torch.tensor(list(words.values()))).to(model.dtype)
    axes: dict[str, Any] = {"word": list(words), "head": [f"{i}.{j}" for i, j in heads], "rank": top}
    arrays = {}
    for name, function in (("writes_words", written), ("looks_for_words", looked_for)):
        each = {layer: function(model.layers[layer], rows) for layer in sorted({layer for layer, _ in heads})}
        vectors = torch.stack([each[layer][:, head] for layer, head in heads], 1)
        texts = _top_words(model, vocabulary, vectors.flatten(0, 1), top)
        arrays[name] = NamedArray(np.array(texts, dtype=np.str_).reshape(len(words), len(heads), top), axes)
    return arrays


def _top_words(model: LanguageModel, vocabulary: Vocabulary, vectors: Tensor, top: int) -> list[list[str]]:
    """The top tokens of each vector as texts (ids without a tokenizer)."""
    if top > len(vocabulary):
        raise UserError(f"analysis.top: got {top}; the vocabulary has {len(vocabulary)} tokens. Give fewer")
    _, ids = vocabulary.read(vectors, torch.zeros(len(vectors), dtype=torch.long), top)
    decode = str if model.tokenizer is None else lambda i: model.tokenizer.decode([i])
    return [[decode(i) for i in row] for row in ids.tolist()]


def _word_ids(model: LanguageModel, words: Sequence[str | int]) -> dict[str, int]:
    """Token ids by what they were called. Raises `UserError` for ids and words that are not one token."""
    found = {}
    for word in words:
        if isinstance(word, int) or model.tokenizer is None:
            if not str(word).isdigit() or int(word) >= model.vocabulary:
                raise UserError(
                    f"analysis.words: got {word!r}; expected a token id from 0 to {model.vocabulary - 1}"
                    " (texts need a tokenizer)"
                )
            found[str(word)] = int(word)
            continue
        ids = model.tokenizer(word, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise UserError(
                f"analysis.words: {word!r} is {len(ids)} tokens and must be one. Mind the blank before it:"
                f' analysis.words=[" {word.strip()}"]'
            )
        found[word] = ids[0]
    return found


def _tell(result: Result) -> None:
    """The strongest units of the first prompts, in the notes."""
    if "unit_words" not in result.arrays:
        return
    layers, words = result.arrays["unit_layer"].values, result.arrays["unit_words"].values
    units, numbers = result.arrays["unit_index"].values, result.arrays["number"].values
    for place in np.nonzero(layers[:, 0] >= 0)[0].tolist():
        told = [
            f"{layers[place, i]}.{units[place, i]}: {', '.join(str(w).strip() for w in words[place, i])}"
            for i in range(layers.shape[1])
        ]
        result.notes[f"prompt.{numbers[place]}"] = "; ".join(told)
