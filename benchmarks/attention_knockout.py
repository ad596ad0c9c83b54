"""Attention knockout on a GPT-2-small-shaped model: the fast path against one whole pass a cell.

    OMP_NUM_THREADS=1 python benchmarks/attention_knockout.py [--prompts 32] [--sample 16]   (one thread)

Random weights, random prompts of 6 to 14 tokens (about 10, as in the published set), float32, windows of 9,
three sets: 36 cells a prompt. The fast path does all cells of all prompts; whole passes do a sample of cells,
in three ways: one prompt at a time with logits at every position, as in the released code, or at the last one
only, and 16 prompts of a cell in one batch with logits at the last position only. All in one process; the
largest relative difference is printed, and above 1e-5 it is an error.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor

from repro.data.token_batch import TokenBatch
from repro.interventions.attention_knockout import Clean, knockout, probability, window
from repro.interventions.attention_knockout_definition import one
from repro.interventions.lm_edits import CutEdges
from repro.interventions.lm_run import run
from repro.models.huggingface import wrap
from repro.models.language_model import LanguageModel

WINDOW, SETS, BATCH = 9, 3, 16


def model_and_prompts(prompts: int) -> tuple[LanguageModel, TokenBatch, Tensor]:
    """GPT-2 small's shape, random prompts, and the three sets of the main figure [B, S, T]."""
    torch.manual_seed(0)
    config = transformers.GPT2Config()
    model = wrap(transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa"))
    batch = TokenBatch.of([torch.randint(0, 50000, (6 + i % 9,)).tolist() for i in range(prompts)])
    columns, end = torch.arange(batch.tokens.shape[1])[None], batch.last[:, None]
    subject = (columns < 3).expand(prompts, -1)
    last = columns == end
    return model, batch, torch.stack([subject, batch.mask & ~subject & ~last, last], dim=1)


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Processor time of a call, and what it gave."""
    begin = time.process_time()
    value = call()
    return time.process_time() - begin, value


def fast(model: LanguageModel, batch: TokenBatch, sets: Tensor) -> tuple[Tensor, Tensor]:
    """Answers [B], and probabilities [B, S, layer] of all cells, the clean runs among the work."""
    windows = [window(centre, WINDOW, model.depth) for centre in range(model.depth)]
    answers, found = [], []
    for rows in torch.arange(len(batch)).split(BATCH):
        clean = Clean.of(model, batch.rows(rows))
        answers.append(clean.logits.argmax(-1))
        found.append(knockout(model, clean, sets[rows], windows, answers[-1]))
    return torch.cat(answers), torch.cat(found)


def single(
    model: LanguageModel, batch: TokenBatch, chosen: Tensor, layer: int, row: int, answer: int, at: str
) -> Tensor:
    """One prompt, one cell: a whole pass with logits `at` all positions or the last, softmax at the last."""
    length = int(batch.mask[row].sum())
    keys = chosen[row, :length].nonzero().flatten().tolist()
    edits = [CutEdges(at, [length - 1], keys) for at in window(layer, WINDOW, model.depth)]
    alone = TokenBatch(batch.tokens[row : row + 1, :length], batch.mask[row : row + 1, :length])
    logits = run(model, alone, edits, logits=at).logits
    assert logits is not None
    return probability(logits[:, -1] if at == "all" else logits, torch.tensor([answer]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="attention knockout: fast against whole passes")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--sample", type=int, default=16, help="cells that whole passes are measured on")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, batch, sets = model_and_prompts(options.prompts)
    cells = options.prompts * SETS * model.depth
    rng = random.Random(0)
    fast(model, batch.rows([0]), sets[:1])  # warm
    seconds(lambda: single(model, batch, sets[:, 0], 3, 0, 0, "all"))
    took, (answer, found) = seconds(lambda: fast(model, batch, sets))
    ways = {"one prompt a pass, all logits": "all", "one prompt a pass, last logits": "last"}
    times: dict[str, list[float]] = {**{way: [] for way in ways}, "16 prompts a pass, last logits": []}
    worst = 0.0
    for i in range(options.sample):
        row, place, layer = rng.randrange(options.prompts), rng.randrange(SETS), rng.randrange(model.depth)
        for way, at in ways.items():
            spent, value = seconds(
                lambda: single(model, batch, sets[:, place], layer, row, int(answer[row]), at)  # noqa: B023
            )
            times[way].append(spent)
            worst = max(worst, float((value / found[row, place, layer] - 1).abs()))
        if i % 4 == 0:
            layers = window(layer, WINDOW, model.depth)
            some = torch.arange(len(batch))[:BATCH]
            spent, value = seconds(
                lambda: one(model, batch.rows(some), sets[some, place], layers, answer[some])  # noqa: B023
            )
            times["16 prompts a pass, last logits"].append(spent / len(some))
            worst = max(worst, float((value / found[some, place, layer] - 1).abs().max()))
    again, _ = seconds(lambda: fast(model, batch, sets))
    each = (took + again) / 2 / cells
    print(f"{options.prompts} prompts of {batch.mask.sum() / len(batch):.1f} tokens, {cells} cells,"
          f" {torch.get_num_threads()} thread")  # fmt: skip
    print(f"fast: {took:.2f} s and {again:.2f} s, {1000 * each:.2f} ms a cell (processor time)")
    for name, spent in times.items():
        mean = sum(spent) / len(spent)
        print(f"{name}: {1000 * mean:.1f} ms a cell ({len(spent)} measured), ratio {mean / each:.1f}")
    print(f"largest relative difference of a probability: {worst:.1e}")
    if worst > 1e-5:
        raise SystemExit("fast path and whole passes differ by more than 1e-5")


if __name__ == "__main__":
    main()
