"""What measurements on prompts need before they run. Imports no PyTorch."""

from __future__ import annotations

from typing import Any

from repro.costs import Cost, Work

TOKENS = 20  # of a prompt; only the tokenizer knows
PROMPTS = 200  # where only the file tells


def prompts_of(data: Any) -> tuple[int, str]:
    """How many prompts there are, and in words what of that is assumed."""
    known = getattr(data, "n", None)
    said = "" if known else " assumed, since only the file tells"
    return known or PROMPTS, f"{known or PROMPTS:,} prompts{said} of {TOKENS} tokens (assumed)"


def one_pass(data: Any, batch: int) -> Cost:
    """Every prompt once through the model, with logits at its end."""
    prompts, said = prompts_of(data)
    return Cost((Work("one pass", prompts, TOKENS, batch=min(batch, prompts)),), lines=(said,))


def patching_cost(shape: Any, data: Any, spec: Any, by_head: tuple[str, ...]) -> Cost:
    """Activation patching: two runs, one for each site, and passes from each patched layer on.

    by_head: sites that are patched head by head.
    """
    prompts, said = prompts_of(data)
    layers = list(range(shape.layers)) if spec.layers is None else spec.layers
    places = {"together": 1, "columns": TOKENS}
    count = places[spec.positions] if isinstance(spec.positions, str) else len(spec.positions)
    variants = count * sum(_heads(shape, site) if site in by_head else 1 for site in spec.sites)
    share = sum(shape.layers - layer for layer in layers) / (shape.layers * max(len(layers), 1))
    passes = Work(
        "from the patched layer on", prompts * len(layers) * variants, TOKENS, batch=spec.batch, share=share
    )
    base = Work("whole runs", prompts, TOKENS, forwards=3 + len(spec.sites), batch=min(spec.batch, prompts))
    return Cost((base, passes), lines=(f"{said}, {len(layers) * variants:,} passes each",))


def _heads(shape: Any, site: str) -> int:
    return shape.kv_heads if site in ("k", "v") else shape.heads
