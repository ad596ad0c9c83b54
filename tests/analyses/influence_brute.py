"""Influence scores by the definitions, one block at a time with autograd: slow, and written for itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

SITES = {
    "gpt2": ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
}


def parameters(model: Any, names: Sequence[str]) -> dict[str, nn.Module]:
    return {name: dict(model.hf.named_modules())[name] for name in names}


def loss(model: Any, tokens: Tensor, labels: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """Summed cross-entropy of one block."""
    arguments = {}
    if mask is not None:
        positions = (mask.long().cumsum(-1) - 1).clamp(min=0)[None]
        arguments = {"attention_mask": mask.long()[None], "position_ids": positions}
    logits = model.hf(tokens[None], use_cache=False, **arguments).logits[0, :-1]
    wanted = tokens[1:] if labels is None else labels
    each = nn.functional.cross_entropy(logits, wanted, reduction="none")
    return (each if mask is None else each * (mask[1:] & mask[:-1])).sum()


def gradient(model: Any, modules: dict[str, nn.Module], of: Tensor) -> dict[str, Tensor]:
    """Of every module: [outputs, inputs + 1], the bias last."""
    wanted: list[Any] = [
        p for module in modules.values() for p in (module.weight, module.bias) if p is not None
    ]
    found = iter(torch.autograd.grad(of, wanted))
    whole = {}
    for name, module in modules.items():
        weight = next(found)
        weight = weight.T if isinstance(module, Conv1D) else weight
        columns = [weight] + ([next(found)[:, None]] if module.bias is not None else [])
        whole[name] = torch.cat(columns, dim=1)
    return whole


def gradients(
    model: Any, names: Sequence[str], tokens: Tensor, labels: Tensor | None = None, mask: Tensor | None = None
) -> list[dict[str, Tensor]]:
    """One mapping a block."""
    modules = parameters(model, names)
    wanted = [p for module in modules.values() for p in module.parameters()]
    for one in wanted:
        one.requires_grad_(True)
    try:
        return [
            gradient(
                model,
                modules,
                loss(
                    model,
                    tokens[i],
                    None if labels is None else labels[i],
                    None if mask is None else mask[i],
                ),
            )
            for i in range(len(tokens))
        ]
    finally:
        for one in wanted:
            one.requires_grad_(False)


def pairs(
    model: Any, name: str, tokens: Tensor, labels: Tensor | None = None, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Inputs with a trailing 1 and output gradients at every real position of all blocks: [rows, ...]."""
    module = dict(model.hf.named_modules())[name]
    seen: dict[str, Tensor] = {}

    def keep(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        seen["a"] = args[0].detach().reshape(-1, args[0].shape[-1])
        output = output if output.requires_grad else output.detach().requires_grad_()
        seen["y"] = output
        return output

    handle = module.register_forward_hook(keep)
    inputs, outputs = [], []
    for i in range(len(tokens)):
        chosen = None if mask is None else mask[i]
        of = loss(model, tokens[i], None if labels is None else labels[i], chosen)
        (slope,) = torch.autograd.grad(of, seen["y"])
        real = torch.ones(tokens.shape[1], dtype=torch.bool) if chosen is None else chosen
        ones = torch.ones(len(real), 1 if module.bias is not None else 0, dtype=slope.dtype)
        inputs.append(torch.cat([seen["a"], ones], 1)[real])
        outputs.append(slope.reshape(len(real), -1)[real])
    handle.remove()
    return torch.cat(inputs), torch.cat(outputs)


def preconditioner(
    model: Any, name: str, strategy: str, damping: float | None, tokens: Tensor, labels: Tensor | None = None,
    mask: Tensor | None = None,
) -> Any:  # fmt: skip
    """G -> P(G) of one module, by the formulas."""
    if strategy == "identity":
        return lambda matrix: matrix
    blocks = [one[name] for one in gradients(model, [name], tokens, labels, mask)]
    if strategy == "diagonal":
        curvature = torch.stack([one**2 for one in blocks]).mean(0)
        added = 0.1 * curvature.mean() if damping is None else damping
        return lambda matrix: matrix / (curvature + added)
    a, g = pairs(model, name, tokens, labels, mask)
    values_a, basis_a = torch.linalg.eigh(a.T @ a / len(a))
    values_s, basis_s = torch.linalg.eigh(g.T @ g / len(a))
    if strategy == "kfac":
        curvature = values_s[:, None] * values_a[None]
    else:
        curvature = torch.stack([(basis_s.T @ one @ basis_a) ** 2 for one in blocks]).mean(0)
    added = 0.1 * curvature.mean() if damping is None else damping

    def apply(matrix: Tensor) -> Tensor:
        return basis_s @ ((basis_s.T @ matrix @ basis_a) / (curvature + added)) @ basis_a.T

    return apply


def scores(
    model: Any, names: Sequence[str], strategy: str, damping: float | None, train: Tensor, query: Tensor,
    labels: Tensor | None = None, masks: tuple[Tensor, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """[module, query, block]."""
    train_mask, query_mask = (None, None) if masks is None else masks
    left = gradients(model, names, query, mask=query_mask)
    right = gradients(model, names, train, mask=train_mask)
    found = torch.zeros(len(names), len(query), len(train), dtype=torch.float64)
    for m, name in enumerate(names):
        apply = preconditioner(model, name, strategy, damping, train, labels, train_mask)
        for q, one in enumerate(left):
            ready = apply(one[name])
            for n, other in enumerate(right):
                found[m, q, n] = (ready * other[name]).sum()
    return found
