"""Which attention and MLP outputs at the last position name the answer, and what of the pattern that takes.

Source: Geva et al. 2023, arXiv 2304.14767, section on attribute extraction; definitions of the released
notebook.
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
from repro.analyses.attribute_specs import AttributeExtraction
from repro.analyses.fact_inputs import Asked, ask, common_arrays, common_scalars, facts_of
from repro.data.facts_tokens import FactBatch
from repro.interventions.lm_edits import At
from repro.interventions.lm_run import Run
from repro.interventions.lm_run import run as forward
from repro.interventions.reweighting import ROWS, UNTOUCHED, attention_reads, variants
from repro.interventions.vocabulary_projection import Vocabulary, as_hidden, hidden_at
from repro.models.language_model import LanguageModel
from repro.progress import progress
from repro.results import NamedArray, Result
from repro.shards import WHOLE, Part, join

SUBLAYERS: list[Any] = ["MHSA", "MLP"]
VECTORS: list[Any] = [*SUBLAYERS, "subject-last"]


def run(subject: Any, data: Any, record: Any, directory: Path | None, spec: AttributeExtraction) -> Result:
    """Read every attention and MLP output at the last position through E; see `repro.analyses.fact_inputs`
    for what is saved of each prompt.

    Arrays: rank [prompt, vector, layer], of the answer (0: highest; subject-last is the state there after the
    block, the last one normalised); event [prompt, sublayer, layer], rank 0; top_tokens [prompt, layer,
    sublayer, rank], ids; top_word [prompt, layer, sublayer]; group [prompt], the first prompt of the same
    text; knockout_event [reweight, row, prompt, layer]; event_rate [sublayer, layer], percent of prompts; and
    for each way WAY of reweighting over rows of the published table: rate.WAY (% of examples with an event in
    any layer), layers.WAY (mean number of layers), layers_if_any.WAY. Scalars: rate.ROW, layers.ROW and
    layers_if_any.ROW for MHSA, MLP and, as `spec.reweight` has it, each row (MHSA-again is MHSA from its
    parts); the same behind the other way's name; share.* and MHSA_not_after_MLP (%), see
    `extraction_statistics.order`; subject_rank.mean, .median, .sd over MHSA events; and common ones.
    """
    return merge([run_part(subject, data, directory, spec, WHOLE)], spec)


def run_part(
    subject: Any, data: Any, directory: Path | None, spec: AttributeExtraction, part: Part
) -> Result:
    """Ranks, top tokens and events of some of the prompts."""
    model = lm.model_of(subject)
    asked = ask(model, data, part, spec.batch)
    vocabulary, whole = Vocabulary(model), facts_of(model, data)
    own = statistics.text_groups(whole.facts)
    first = statistics.first_of_subject(whole.facts)
    count, depth, top = len(asked), model.depth, min(spec.top, model.vocabulary)
    ranks = torch.zeros(count, len(VECTORS), depth, dtype=torch.int32)
    tops = torch.zeros(count, depth, len(SUBLAYERS), top, dtype=torch.int32)
    events = torch.zeros(len(spec.ways), len(ROWS), count, depth, dtype=torch.bool)
    with progress(count, "attribute extraction", "prompts") as bar:
        for index, rows in asked.batches(spec.batch):
            states, *found = _measure(model, vocabulary, rows, spec)
            ranks[index, :2], tops[index], events[:, :, index] = found
            if spec.subject_prompt == "first":
                _of_first_prompts(model, states, rows.facts, whole, first)
            ranks[index, 2] = vocabulary.ranks(states, rows.answer[:, None]).int()
            bar.advance(len(index))
    prompts, layers = {"prompt": count}, list(range(depth))
    arrays = {
        **common_arrays(asked),
        "group": lm.array(torch.tensor([own[int(number)] for number in asked.facts.number]), prompts),
        "rank": lm.array(ranks, {**prompts, "vector": VECTORS, "layer": layers}),
        "top_tokens": lm.array(tops, {**prompts, "layer": layers, "sublayer": SUBLAYERS, "rank": top}),
        "top_word": _words(model, tops, {**prompts, "layer": layers, "sublayer": SUBLAYERS}),
    }
    if spec.knockouts:
        axes = {"reweight": list(spec.ways), "row": list(ROWS), **prompts, "layer": layers}
        arrays["knockout_event"] = lm.array(events, axes)
    return Result({}, arrays, statistics.said(vocabulary))


def merge(parts: Sequence[Result], spec: AttributeExtraction) -> Result:
    """Events, rates and what follows from them."""
    result = join(parts, "prompt", add=["asked"])
    arrays, scalars = result.arrays, result.scalars
    scalars.update(common_scalars(arrays))
    rank, group = arrays["rank"], arrays["group"].values
    layers = rank.axes["layer"]
    event = rank.values[:, : len(SUBLAYERS)] == 0
    arrays["event"] = NamedArray(event, {"prompt": len(event), "sublayer": SUBLAYERS, "layer": layers})
    arrays["event_rate"] = NamedArray(100.0 * event.mean(0), {"sublayer": SUBLAYERS, "layer": layers}, "%")
    table = {name: statistics.statistics(event[:, i], group) for i, name in enumerate(SUBLAYERS)}
    _tell(scalars, "", table)
    scalars.update(statistics.order(event[:, 0], event[:, 1], group))
    scalars.update(_subject_rank(rank.values[:, 2], event[:, 0]))
    if "knockout_event" in arrays:
        blocked = arrays["knockout_event"].values
        for i, way in enumerate(spec.ways):
            rows = {row: statistics.statistics(blocked[i, j], group) for j, row in enumerate(ROWS)}
            _tell(scalars, "" if way == spec.reweight else f"{way}.", rows)
            for name, unit in (("rate", "%"), ("layers", "1"), ("layers_if_any", "1")):
                values = [row[name] for row in (table | rows).values()]
                arrays[f"{name}.{way}"] = NamedArray(np.array(values), {"row": [*SUBLAYERS, *ROWS]}, unit)
        result.notes["reweight"] = f"{spec.reweight}; also measured: {', '.join(spec.ways[1:]) or 'nothing'}"
    _examples(result, spec.examples)
    return result


def _measure(
    model: LanguageModel, vocabulary: Vocabulary, asked: Asked, spec: AttributeExtraction
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States at the last subject position after each block [B, layer, d], ranks [B, sublayer, layer], top
    tokens [B, layer, sublayer, rank], events [way, row, B, layer].
    """
    facts, answer = asked.facts, asked.answer
    outputs = [
        [At(site, layer, positions=facts.end) for layer in range(model.depth)]
        for site in ("attn_out", "mlp_out")
    ]
    pairs = attention_reads(model, facts) if spec.knockouts else []
    after = _after_blocks(model, facts)
    reads = [*after, *outputs[0], *outputs[1], *(place for pair in pairs for place in pair)]
    found = forward(model, facts.batch, reads=reads, logits=None)
    vectors = torch.stack([torch.stack([found[at][:, 0] for at in each], 1) for each in outputs], 1)
    wanted = answer[:, None, None].expand(vectors.shape[:-1]).reshape(-1)
    rank, top = vocabulary.read(vectors.flatten(0, 2), wanted, spec.top)
    rank, top = (x.unflatten(0, vectors.shape[:3]) for x in (rank, top))
    events = torch.zeros(len(spec.ways), len(ROWS), len(facts), model.depth, dtype=torch.bool)
    for layer, (value, pattern) in zip(model.layers, pairs, strict=False):
        new = variants(layer, found[value], found[pattern], facts, spec.ways)
        events[..., layer.index] = vocabulary.ranks(new, answer) == 0
    return _states(model, found, after), rank.int(), top.transpose(1, 2).int(), events


def _after_blocks(model: LanguageModel, facts: FactBatch) -> list[At]:
    """The last subject position after each block."""
    return [hidden_at(model, layer + 1, facts.last) for layer in range(model.depth)]


def _states(model: LanguageModel, found: Run, places: Sequence[At]) -> Tensor:
    return torch.stack([as_hidden(model, found, place)[:, 0] for place in places], dim=1)


def _of_first_prompts(
    model: LanguageModel, states: Tensor, facts: FactBatch, whole: FactBatch, first: Sequence[int]
) -> None:
    """Put the states of the first prompt with the same subject where a prompt is not itself that."""
    others = [i for i, number in enumerate(facts.number.tolist()) if first[number] != number]
    if others:
        there = whole.rows([first[int(facts.number[i])] for i in others]).narrow()
        places = _after_blocks(model, there)
        states[others] = _states(model, forward(model, there.batch, reads=places, logits=None), places)


def _words(model: LanguageModel, tops: Tensor, axes: dict[str, Any]) -> NamedArray:
    """The first of the top tokens as text; its id where there is no tokenizer."""
    ids = tops[..., 0].numpy()
    decode = str if model.tokenizer is None else lambda i: model.tokenizer.decode([i])
    texts = {i: decode(i) for i in np.unique(ids).tolist()}
    flat = [texts[i] for i in ids.ravel().tolist()]
    return NamedArray(np.array(flat, dtype=np.str_).reshape(ids.shape), axes)


def _tell(scalars: dict[str, float], before: str, rows: dict[str, dict[str, float]]) -> None:
    for row, values in rows.items():
        called = "MHSA-again" if row == UNTOUCHED else row
        scalars.update({f"{before}{name}.{called}": value for name, value in values.items()})


def _subject_rank(rank: np.ndarray, event: np.ndarray) -> dict[str, float]:
    """Of the answer's rank in the subject's state [prompt, layer] where attention extracts it."""
    found = rank[event].astype(float)
    if not len(found):
        return dict.fromkeys(("subject_rank.mean", "subject_rank.median", "subject_rank.sd"), float("nan"))
    sd = float(found.std(ddof=1)) if len(found) > 1 else float("nan")
    median = float(np.median(found))
    return {
        "subject_rank.mean": float(found.mean()),
        "subject_rank.median": median,
        "subject_rank.sd": sd,
    }


def _examples(result: Result, count: int) -> None:
    """Of the first prompts, the layers that extract and the word that they name."""
    event, words = result.arrays["event"].values, result.arrays["top_word"].values
    for place in range(min(count, len(event))):
        told = [
            f"{name} of layer {layer}: {words[place, layer, i]}"
            for i, name in enumerate(SUBLAYERS)
            for layer in np.nonzero(event[place, i])[0].tolist()
        ]
        result.notes[f"prompt.{place}"] = "; ".join(told) or "no layer extracts the answer"
