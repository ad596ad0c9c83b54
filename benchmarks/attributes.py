"""Patching of early states, and attributes rates, on GPT-2 small's shape: the fast ways against the slow.

    OMP_NUM_THREADS=1 python benchmarks/attributes.py [--prompts 8] [--sample 2]      (one thread)

Random weights, random prompts of 10 tokens, float32. Patching: one clean pass and projections of rows,
against a pass for each (layer, set, source), of which a few prompts are done and scaled. Reading attention
outputs through the vocabulary is the same in both and is timed apart. Rates: the vocabulary decoded once,
against decoding 500 tokens a vector, with a tokenizer that costs what a dictionary does. Prints processor
time, ratios and differences.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers

from repro.data.context_words import Words, rates, stop_words
from repro.data.facts_records import Fact
from repro.data.facts_tokens import FactBatch, tokenise
from repro.interventions.early_rows import SETS, Clean, patched_outputs
from repro.interventions.lm_edits import At, Transform
from repro.interventions.lm_run import run
from repro.interventions.vocabulary_projection import Vocabulary
from repro.models.huggingface import wrap
from repro.models.language_model import LanguageModel

TOKENS, SOURCES = 10, (0, 1, 5, 10)


class Decoder:
    """A tokenizer that decodes an id to a text of its own."""

    def decode(self, ids: list[int]) -> str:
        return f" word{ids[0]}"


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Processor time of a call, and what it gave."""
    begin = time.process_time()
    found = call()
    return time.process_time() - begin, found


def in_turns(*calls: Callable[[], Any], rounds: int = 7) -> list[float]:
    """Least processor time of each call: other work on the same cores slows them down, in turns alike."""
    times = [[seconds(call)[0] for call in calls] for _ in range(rounds)]
    return [min(each) for each in zip(*times, strict=True)]


def slow(model: LanguageModel, facts: FactBatch) -> torch.Tensor:
    """A pass for each cell, [layer, 1 + source * set, B, d]."""
    places = Clean.of(model, facts).hidden
    clean = run(model, facts.batch, reads=places, logits=None)
    found = []
    for place in places:
        read = At("attn_out", place.layer, positions=facts.end)
        cells = [run(model, facts.batch, reads=[read], logits=None)[read][:, 0]]
        for source in SOURCES:
            for name in SETS:
                where, early = facts.positions(name)[..., None], clean[places[source]]
                edit = Transform(place, lambda x, w=where, e=early: torch.where(w, e, x))
                cells.append(run(model, facts.batch, [edit], [read], logits=None)[read][:, 0])
        found.append(torch.stack(cells))
    return torch.stack(found)


def fast(model: LanguageModel, facts: FactBatch) -> torch.Tensor:
    """The same from one clean pass."""
    places = Clean.of(model, facts)
    clean = run(model, facts.batch, reads=places.reads, logits=None)
    return torch.stack([patched_outputs(layer, clean, places, facts, SOURCES) for layer in model.layers])


def by_decoding(ids: torch.Tensor, context: set[str], decoder: Decoder) -> list[float]:
    """Rates as the notebook computes them: each vector's tokens decoded anew."""
    found = []
    for row in ids.tolist():
        words = [decoder.decode([i]) for i in row]
        kept = [w for w in words if w.strip().lower() not in stop_words() and len(w.strip()) > 2][:50]
        found.append(100.0 * len(set(kept) & context) / len(kept))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--sample", type=int, default=2)
    given = parser.parse_args()
    torch.manual_seed(0)
    config = transformers.GPT2Config()
    model = wrap(transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager"))
    tokens = torch.randint(0, 50000, (given.prompts, TOKENS)).tolist()
    facts = tokenise(
        [Fact(i, "", tokens=tuple(ids), span=(1, 4)) for i, ids in enumerate(tokens)], None, None, "offsets"
    )
    run(model, facts.batch, logits=None)  # warm
    found = fast(model, facts)
    one, quick = in_turns(lambda: run(model, facts.batch, logits=None), lambda: fast(model, facts))
    few = facts.rows(list(range(given.sample)))
    long, whole = seconds(lambda: slow(model, few))
    long *= given.prompts / given.sample
    apart = float((found[:, :, : given.sample] - whole).abs().max() / whole.abs().max())
    cells = 1 + len(SOURCES) * len(SETS) * model.depth
    print(f"patching, {given.prompts} prompts: {quick:.2f} s, {quick / one:.2f} passes each, not {cells};")
    print(f"  a pass a cell {long:.1f} s, {long / quick:.0f}x; largest relative difference {apart:.1e}")
    vocabulary, answer = Vocabulary(model), torch.zeros(given.prompts, dtype=torch.long)
    reading, _ = seconds(lambda: vocabulary.ranks(found, answer))
    print(f"  reading {found[..., 0].numel()} attention outputs through E, in both: {reading:.2f} s")
    decoder, ids = Decoder(), torch.stack([torch.randperm(50257)[:500] for _ in range(960)])
    once, words = seconds(lambda: Words(decoder, 50257))
    strings = words.string[torch.arange(0, 50257, 40)]
    member = torch.zeros(len(ids), words.strings, dtype=torch.bool)
    member[:, strings] = True
    quick, rate = seconds(lambda: rates(words, ids, member, 50))
    context = {words.texts[i] for i in range(0, 50257, 40)}
    long, expected = seconds(lambda: by_decoding(ids, context, decoder))
    same = torch.equal(rate, torch.tensor(expected, dtype=torch.float64))
    print(
        f"rates of {len(ids)} vectors: {quick:.3f} s ({once:.2f} s once for all); decoding each {long:.2f} s,"
    )
    print(f"  {long / quick:.0f}x; equal: {same}")


if __name__ == "__main__":
    main()
