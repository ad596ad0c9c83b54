"""What a small language model can do: measured on the probes of its task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from repro.data.lm_tasks import Scored

ROWS, TOKENS = 200, 12_800  # at most, in one forward pass


def predictions(model: Any, tokens: Tensor, scored: Bool[Tensor, "row column"]) -> Float[Tensor, "scored V"]:
    """The logits of every scored token, from the position before it, in the order of rows and columns.

    Padding on the right changes nothing before it, so no attention mask is needed.
    """
    logits = model(tokens, use_cache=False).logits[:, :-1]
    if bool(scored[:, 1:].all()):
        return logits.flatten(0, 1)  # the same, and much faster on the way back
    return logits[scored[:, 1:]]


def _device(model: Any) -> Any:
    return getattr(model, "device", "cpu")  # any module that gives logits will do


def loss(model: Any, batch: Scored) -> Tensor:
    """Mean cross entropy of the scored tokens, in nats."""
    tokens, scored = (torch.from_numpy(part).to(_device(model)) for part in (batch.tokens, batch.scored))
    return functional.cross_entropy(predictions(model, tokens, scored), tokens[scored])


@torch.no_grad()
def measure(model: Any, probe: Scored) -> dict[str, float]:
    """Means over the scored tokens of a probe.

    loss: cross entropy in nats. accuracy: share for which the true token has the largest logit of all.
    Where the probe names rivals, prefers: share with a larger logit than the rival's; logit_difference:
    logit of the true token minus the rival's.
    """
    model.eval()
    parts: dict[str, list[Tensor]] = {}
    at_once = max(1, min(ROWS, TOKENS // probe.tokens.shape[1]))
    for begin in range(0, len(probe.tokens), at_once):
        rows = slice(begin, begin + at_once)
        for name, values in _each(model, probe, rows).items():
            parts.setdefault(name, []).append(values)
    return {name: float(torch.cat(values).cpu().double().mean()) for name, values in parts.items()}


def measure_all(model: Any, probes: Mapping[str, Scored]) -> dict[str, float]:
    """The measures of all probes, named <probe>_<measure>."""
    return {
        f"{name}_{key}": value for name, one in probes.items() for key, value in measure(model, one).items()
    }


def _each(model: Any, probe: Scored, rows: slice) -> dict[str, Tensor]:
    """The same for every scored token of some rows."""
    tokens, scored = (
        torch.from_numpy(part[rows]).to(_device(model)) for part in (probe.tokens, probe.scored)
    )
    if not bool(scored.any()):
        return {}
    logits, true = predictions(model, tokens, scored), tokens[scored]
    values = {
        "loss": functional.cross_entropy(logits, true, reduction="none"),
        "accuracy": (logits.argmax(-1) == true).float(),
    }
    if probe.rivals is not None:
        rivals = torch.from_numpy(np.ascontiguousarray(probe.rivals[rows])).to(_device(model))[scored]
        at = torch.arange(len(true), device=_device(model))
        difference = logits[at, true] - logits[at, rivals]
        values |= {"prefers": (difference > 0).float(), "logit_difference": difference}
    return values
