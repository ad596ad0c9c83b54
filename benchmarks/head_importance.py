"""Head importance on an OPT-125M-shaped model: one backward pass of a batch against the plain definition.

    OMP_NUM_THREADS=1 python benchmarks/head_importance.py [--examples 24]                  (one thread)
    python benchmarks/head_importance.py --opt-66b [--tokens 2048] [--length 256]           (one H200)

Random weights, random examples of 16 to 96 tokens (the tasks' contexts at 0 shots have 14 to 339). The plain
definition runs one example at a time with the library's own loss: logits at every position, context vectors
and their gradients kept for all layers and multiplied afterwards; with gradients of all weights, as in the
released code, and with weights frozen. All in one process; scores must agree to 1e-3 of a layer's mean, and
rankings of heads be identical, or it is an error.

--opt-66b: OPT-66B's shape in bfloat16 with random weights, made on the GPU; tokens a second, peak memory, and
the share of the GPU's dense rate (989 TFLOP/s), without and with recomputation.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from repro.data.scored_texts import Example
from repro.interventions.head_importance import Fitted, How, importance
from repro.interventions.masked_rows import alike
from repro.interventions.masks import rank_heads
from repro.models.huggingface import wrap
from repro.models.language_model import LanguageModel

PEAK = 989e12  # H200, dense 16-bit


def model_and_examples(count: int) -> tuple[LanguageModel, list[Example]]:
    """OPT-125M's shape, and random examples, longest first as the analysis has them."""
    torch.manual_seed(0)
    config = transformers.OPTConfig()
    model = wrap(transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa"))
    lengths = sorted((16 + (80 * i) // max(count - 1, 1) for i in range(count)), reverse=True)
    rows = [tuple(torch.randint(4, 50000, (length,)).tolist()) for length in lengths]
    return model, [Example(row[:-4], row[-4:]) for row in rows]


def plain(model: LanguageModel, example: Example, weights: bool) -> Tensor:
    """s_i [layer, head] of one example: library loss, kept activations. weights: their gradients, too."""
    kept: list[Tensor] = []

    def keep(module: Any, args: tuple) -> Any:
        z = args[0] if args[0].requires_grad else args[0].detach().requires_grad_()
        z.retain_grad()
        kept.append(z)
        return (z,)

    handles = [layer.out.register_forward_pre_hook(keep) for layer in model.layers]
    model.hf.requires_grad_(weights)
    tokens, count = torch.tensor([example.tokens]), len(example.continuation)
    logits = model.hf(input_ids=tokens[:, :-1], use_cache=False).logits
    torch.nn.functional.cross_entropy(logits[0, -count:], tokens[0, -count:]).backward()
    for handle in handles:
        handle.remove()
    model.hf.requires_grad_(False)
    model.hf.zero_grad(set_to_none=True)
    parts = []
    for z in kept:
        assert z.grad is not None
        parts.append((z * z.grad).detach()[0].unflatten(-1, (model.heads, -1)).sum(-1).abs().sum(0))
    return torch.stack(parts)


def fast(model: LanguageModel, examples: Sequence[Example], tokens: int = 2048) -> Tensor:
    """The same of all examples, [example, layer, head], in batches of at most so many padded tokens."""
    fitted = [Fitted.of(one, model.max_positions) for one in examples]
    batches = alike([len(one.tokens) - 1 for one in fitted], tokens)
    return torch.cat([importance(model, [fitted[index] for index in some], How()) for some in batches])


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Processor time of a call, and what it gave."""
    begin = time.process_time()
    value = call()
    return time.process_time() - begin, value


def compare(count: int) -> None:
    """Measure on the CPU, and print."""
    torch.set_num_threads(1)
    model, examples = model_and_examples(count)
    fast(model, examples[-2:])  # warm
    plain(model, examples[-1], True)
    times: dict[str, list[float]] = {"fast": [], "plain, weight gradients": [], "plain, weights frozen": []}
    for _ in range(2):  # in turns: other work on the machine slows all alike
        spent, found = seconds(lambda: fast(model, examples))
        times["fast"].append(spent)
        for name, weights in (("plain, weight gradients", True), ("plain, weights frozen", False)):
            spent, each = seconds(lambda: torch.stack([plain(model, one, weights) for one in examples]))  # noqa: B023
            times[name].append(spent)
            gap = ((found - each).sum(0).abs().amax(1) / each.sum(0).mean(1)).max()
            inputs = sum(len(one.tokens) - 1 for one in examples)
            ours, its = (rank_heads(scores.sum(0).double().numpy() / inputs) for scores in (found, each))
            if float(gap) > 1e-3 or not np.array_equal(ours, its):
                raise SystemExit(f"scores differ by {float(gap):.1e} of a layer's mean, or rankings do")
    tokens = sum(len(one.tokens) - 1 for one in examples)
    print(f"{count} examples, {tokens} input tokens, {torch.get_num_threads()} thread; rankings identical")
    least = min(times["fast"])
    for name, spent in times.items():
        print(f"{name}: {', '.join(f'{one:.2f}' for one in spent)} s of processor time,"
              f" ratio {min(spent) / least:.2f}")  # fmt: skip


def opt_66b(tokens: int, length: int, layers: int) -> None:
    """Throughput on one GPU, and print."""
    config = transformers.OPTConfig(
        hidden_size=9216, num_hidden_layers=layers, num_attention_heads=72, ffn_dim=36864,
        word_embed_proj_dim=9216, dtype=torch.bfloat16,
    )  # fmt: skip
    with torch.device("cuda"):
        hf = transformers.AutoModelForCausalLM.from_config(
            config, attn_implementation="sdpa", dtype=torch.bfloat16
        )
    model = wrap(hf)
    torch.manual_seed(0)
    count = max(1, tokens // length)
    rows = [tuple(torch.randint(4, 50000, (length + 1,)).tolist()) for _ in range(count)]
    batch = [Fitted(row, 4) for row in rows]
    entries = model.depth * 12 * 9216**2
    for recompute in (False, True):
        torch.cuda.reset_peak_memory_stats()
        try:
            importance(model, batch, How(recompute=recompute))
            torch.cuda.synchronize()
            begin = time.perf_counter()
            for _ in range(3):
                importance(model, batch, How(recompute=recompute))
            torch.cuda.synchronize()
        except torch.OutOfMemoryError:
            print(f"recompute {recompute}: {count} x {length} tokens do not fit")
            continue
        spent = (time.perf_counter() - begin) / 3
        useful = (3 if recompute else 2) * 2 * entries * count * length
        print(f"recompute {recompute}: {count} x {length} tokens in {spent:.3f} s,"
              f" {count * length / spent:,.0f} tokens/s, {useful / spent / 1e12:.0f} TFLOP/s in matrices"
              f" ({100 * useful / spent / PEAK:.0f} % of dense rate), peak"
              f" {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="head importance: one backward pass against the definition")
    parser.add_argument("--examples", type=int, default=24)
    parser.add_argument("--opt-66b", action="store_true", help="throughput on one GPU instead")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of a batch on the GPU")
    parser.add_argument("--length", type=int, default=256, help="input tokens of an example on the GPU")
    parser.add_argument("--layers", type=int, default=64, help="layers on the GPU")
    options = parser.parse_args()
    if options.opt_66b:
        opt_66b(options.tokens, options.length, options.layers)
    else:
        compare(options.examples)


if __name__ == "__main__":
    main()
