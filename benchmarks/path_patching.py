"""Path patching of all 156 senders of a GPT-2-small-shaped model: the fast path against the definition.

    OMP_NUM_THREADS=1 python benchmarks/path_patching.py [--prompts 50] [--sample 3]      (one thread)

Random weights, random prompts of 15 tokens, float32. The fast path does the whole sweep; the definition (four
full passes a sender, in the published code's way) does a few senders, and its time is scaled to all. Prints
processor time, ratio, rate of the matrix products, largest difference and peak memory.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from repro.data.token_batch import TokenBatch
from repro.data.token_pairs import PromptPairs
from repro.interventions.path_patching import Effects, sweep
from repro.interventions.path_patching_definition import Definition
from repro.interventions.path_patching_nodes import Receiver, Sender, all_senders, parse_receiver
from repro.models.huggingface import wrap
from repro.models.language_model import LanguageModel

TOKENS = 15
COUNTED = 5  # prompts whose matrix products are counted; their number is proportional to prompts
NAME_MOVERS = [[parse_receiver(one) for one in ("9.6.q", "9.9.q", "10.0.q")]]
SWEEPS: list[tuple[str, list[list[Receiver]], dict[str, Any]]] = [
    ("logits, MLPs recomputed", [], {"mlps": "recompute"}),
    ("logits, MLPs frozen", [], {"mlps": "freeze"}),
    ("three queries, MLPs recomputed", NAME_MOVERS, {"mlps": "recompute"}),
    ("three queries, MLPs frozen", NAME_MOVERS, {"mlps": "freeze"}),
    ("three queries, frozen, filtered", NAME_MOVERS, {"mlps": "freeze", "downstream": "filter"}),
]


def model_and_prompts(prompts: int) -> tuple[LanguageModel, PromptPairs]:
    """GPT-2 small's shape with random weights, and random pairs."""
    torch.manual_seed(0)
    config = transformers.GPT2Config()
    model = wrap(transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa"))
    tokens = torch.randint(0, 50000, (2, prompts, TOKENS))
    mask = torch.ones(prompts, TOKENS, dtype=torch.bool)
    ends = {"END": torch.full((prompts,), TOKENS - 1)}
    answers = torch.randperm(50000)[: 2 * prompts].view(2, prompts)
    pairs = PromptPairs(
        TokenBatch(tokens[0], mask), TokenBatch(tokens[1], mask), answers[0], answers[1], ends, ends,
        torch.zeros(prompts, dtype=torch.long), "benchmark", "", "token_pairs",
    )  # fmt: skip
    return model, pairs


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Processor time of a call, and what it gave."""
    begin = time.process_time()
    value = call()
    return time.process_time() - begin, value


def operations(call: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products of a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="path patching: fast against the definition")
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--sample", type=int, default=3, help="senders that the definition is measured on")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, pairs = model_and_prompts(options.prompts)
    senders = all_senders(model.depth, model.heads)
    # Senders whose effect is not 0 by definition, low and high.
    sample = [Sender(8, 3), Sender(0, 5), Sender(4), Sender(7, 11), Sender(2, 2), Sender(6)][: options.sample]
    seconds(lambda: sweep(model, pairs, senders[:30]))  # warm
    before = peak()
    fast: dict[str, tuple[float, Effects]] = {}
    for name, stages, how in SWEEPS:
        fast[name] = seconds(lambda stages=stages, how=how: sweep(model, pairs, senders, stages, **how))
    print(f"{options.prompts} prompts of {TOKENS} tokens, {len(senders)} senders, {torch.get_num_threads()}"
          f" thread; peak memory {before:.2f} GiB before the sweeps, {peak():.2f} GiB after")  # fmt: skip
    few = pairs.rows(range(COUNTED))
    for name, stages, how in SWEEPS:
        took, effects = fast[name]
        count = operations(lambda stages=stages, how=how: sweep(model, few, senders, stages, **how))
        rate = count * options.prompts / COUNTED / took / 1e9
        print(f"\n{name}\n  fast: {took:.2f} s for all, {count * options.prompts / COUNTED / 1e12:.2f} TFLOP,"
              f" {rate:.0f} GFLOP/s")  # fmt: skip
        for full in (True, False):
            total, worst = 0.0, 0.0
            for one in sample:
                spent, value = seconds(lambda: Definition(model, pairs, stages, full=full, **how)([one]))  # noqa: B023
                total += spent / len(sample)
                worst = max(worst, float((effects.patched[senders.index(one)] - value).abs().max()))
            print(f"  definition, {'full passes' if full else 'no logits  '}: {total:.2f} s a sender,"
                  f" {total * len(senders):.0f} s for all, ratio {total * len(senders) / took:.0f};"
                  f" largest difference {worst:.1e}")  # fmt: skip
    print(f"\npeak memory with the definition {peak():.2f} GiB")


def peak() -> float:
    """Peak resident memory of the process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
