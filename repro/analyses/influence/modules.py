"""Which modules' parameters influence functions look at, and their inputs and output gradients."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from repro.errors import UserError
from repro.models.language_model import LanguageModel

# Gets a module's number, its input [.., features] and the gradient of its output [.., outputs].
Sink = Callable[[int, Tensor, Tensor], None]
SITES = ("qkv", "attn_out", "mlp_in", "mlp_out")


@dataclass(frozen=True, eq=False)
class Tracked:
    """A linear map whose weight and bias are looked at: output = weight input + bias.

    Gradients of it are [outputs, inputs]: its bias, if it has one, is the last column, fed with ones.
    """

    name: str
    module: nn.Module
    features: int
    outputs: int
    bias: bool

    @property
    def inputs(self) -> int:
        """Columns of the gradient."""
        return self.features + self.bias

    @property
    def device(self) -> torch.device:
        """Where it computes; a device map may spread a model."""
        return self.module.weight.device  # type: ignore[union-attr,return-value]

    @property
    def entries(self) -> int:
        """Numbers of the gradient."""
        return self.outputs * self.inputs


def tracked_modules(model: LanguageModel, patterns: Sequence[str] | None = None) -> list[Tracked]:
    """Modules by name, in the order of the model; all projections of attention and MLP if none are named.

    patterns: a module's path (transformer.h.0.attn.c_attn) or dotted parts of it (attn.c_attn, mlp, h.0),
    with * and ? for any letters; or, in every family, qkv, attn_out, mlp_in and mlp_out for the projections
    to queries, keys and values, to attn_out, from mlp_in and to mlp_out. Raises `UserError` for one that none
    matches.
    """
    linear = {
        name: module for name, module in model.hf.named_modules() if isinstance(module, nn.Linear | Conv1D)
    }
    sites = _sites(model)
    inside = {name: module for name, module in linear.items() if id(module) in sites}
    wanted = list(inside) if patterns is None else []
    for pattern in patterns or ():
        found = [
            name for name, module in inside.items() if sites[id(module)] == pattern or _matches(name, pattern)
        ]
        if not found:
            raise _no_match(pattern, list(inside), list(linear))
        wanted += found
    return [_tracked(name, module) for name, module in inside.items() if name in wanted]


def _sites(model: LanguageModel) -> dict[int, str]:
    """What each projection in a block is, whatever its family calls it, by the module's identity."""
    found: dict[int, str] = {}
    for layer in model.layers:
        found.update({id(module): "mlp_in" for module in layer.block.modules()})
        found.update({id(module): "qkv" for module in layer.attention.modules()})
        found.update({id(layer.out): "attn_out", id(layer.down): "mlp_out"})
    return found


def _tracked(name: str, module: Any) -> Tracked:
    shape = module.weight.shape
    features, outputs = (shape[1], shape[0]) if isinstance(module, nn.Linear) else shape
    return Tracked(name, module, features, outputs, module.bias is not None)


def _matches(name: str, pattern: str) -> bool:
    if any(letter in pattern for letter in "*?["):
        return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(f".{name}.", f"*.{pattern}.*")
    return f".{pattern}." in f".{name}."


def _no_match(pattern: str, inside: list[str], linear: list[str]) -> UserError:
    outside = [name for name in linear if name not in inside and _matches(name, pattern)]
    why = (
        f"{outside[0]} is no projection of attention or MLP, and may be as large as the vocabulary"
        if outside
        else "no projection of attention or MLP has such a name"
    )
    sites = list(dict.fromkeys(".".join(name.split(".")[-2:]) for name in inside))
    return UserError(
        f"analysis.modules: {pattern}: {why}. Valid are {', '.join(SITES)}, parts of paths"
        f" ({', '.join(sites)}), whole ones ({inside[0]}), and * and ? in them; null for all {len(inside)}"
    )


@contextmanager
def watched(tracked: Sequence[Tracked], sink: Sink) -> Iterator[None]:
    """Within it, every backward pass hands the inputs and output gradients of all modules to `sink`.

    The first module whose output depends on nothing differentiable becomes where differentiation ends, so no
    gradient is taken below it. The modules stay as they are.
    """
    handles = [one.module.register_forward_hook(_hook(number, sink)) for number, one in enumerate(tracked)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(number: int, sink: Sink) -> Callable[..., Tensor]:
    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        held = [args[0].detach()]
        if not output.requires_grad:
            output = output.detach().requires_grad_()

        def receive(gradient: Tensor) -> None:
            sink(number, held.pop(), gradient)  # freed as soon as it is used

        output.register_hook(receive)
        return output

    return hook
