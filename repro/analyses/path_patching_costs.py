"""What path patching needs, before it runs: two cached runs, and changes carried up at a few positions.

Counted as in `repro/interventions/path_patching.py`: with all heads frozen a change passes through MLPs
alone, one row a sender, prompt and position; behind the receivers whole blocks are computed again. Imports
no PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from repro.analyses.head_specs import is_class
from repro.analyses.prompt_costs import TOKENS, prompts_of
from repro.costs import Cost, Work
from repro.interventions.path_patching_nodes import ALL, parse_receiver

END = "END"


def sweep_cost(
    shape: Any, data: Any, sweeps: Sequence[Sequence[Sequence[str]]], spec: Any, groups: int = 0
) -> Cost:
    """Of some sweeps over all heads and MLPs, each with its stages of receivers (none: the logits).

    A receiver that is the name of a class lies in the layer in which it costs most. groups: senders beside.
    """
    prompts, said = prompts_of(data)
    caches = Work("clean and corrupt runs", prompts, TOKENS, forwards=2 * len(sweeps), unembedded=0,
                  batch=prompts)  # fmt: skip
    flops = prompts * sum(_a_prompt(shape, stages, spec, groups) for stages in sweeps)
    senders = shape.layers * (shape.heads + 1) + groups
    said += f", {senders:,} senders each, MLPs: {spec.mlps}"
    lines = [said, f"{flops / 1e12:.3g} TFLOP beside those runs, for changes on their way"]
    if any(is_class(one) for stages in sweeps for stage in stages for one in stage):
        lines.append("where heads that the run finds will lie is not known: the layer that costs most")
    return Cost((caches,), flops, tuple(lines))


def _a_prompt(shape: Any, stages: Sequence[Sequence[str]], spec: Any, groups: int) -> float:
    """Operations beside the cached runs."""
    if any(is_class(one) for stage in stages for one in stage):
        spans = [[(layer, layer)] * len(stages) for layer in range(1, shape.layers)]
    else:
        layers = [[parse_receiver(one).layer for one in stage] for stage in stages]
        spans = [[(min(found), max(found)) for found in layers]]
    default = getattr(spec, "positions", END)
    places = [{_position(one) or default for one in stage} for stage in stages]
    return max((_of_spans(shape, span, places, spec, groups) for span in spans), default=0.0)


def _of_spans(
    shape: Any, spans: Sequence[tuple[int, int]], places: Sequence[set[str]], spec: Any, groups: int
) -> float:
    """spans: the lowest and highest receiving layer of each stage. places: where it receives."""
    mlp = 2 * shape.mlp_weights
    carried = mlp if spec.mlps == "recompute" else 0
    top = spans[0][1] if spans else shape.layers
    # Live in layer l: the heads up to it, and the MLPs below it.
    live = sum(shape.heads * (layer + 1) + layer + groups for layer in range(top))
    flops = carried * live * (_columns(places[0]) if places else 1)
    cases = top * (shape.heads + 1) + groups
    for (low, _), (_, high), where in zip(spans, spans[1:], places[1:], strict=False):
        flops += carried * cases * max(high - low, 0) * _columns(where)
    if spans and getattr(spec, "downstream", "recompute") == "recompute":
        # From the earliest receiving position to END; how far that is, only the prompts tell.
        window = 1 if places[-1] == {END} else TOKENS
        flops += (mlp + 2 * shape.attention_weights) * cases * window * (shape.layers - spans[-1][0])
    return flops


def _columns(places: set[str]) -> int:
    return TOKENS if ALL in places else len(places)


def _position(receiver: str) -> str | None:
    return receiver.partition("@")[2] or None
