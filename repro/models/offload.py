"""Modules whose weights lie elsewhere (host memory, disk) until they are called, as accelerate leaves them.

Calling such a module brings its weights and takes them away again. `at_hand` brings those of a whole block
once, for as long as it is worked on, so that its weights can be read, and every call uses the same ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def _offloading(module: nn.Module) -> Any:
    """The hook that brings a module's weights; None if they are in place."""
    hook: Any = getattr(module, "_hf_hook", None)
    parts = getattr(hook, "hooks", [hook])
    return hook if any(getattr(part, "offload", False) for part in parts) else None


@contextmanager
def at_hand(*modules: nn.Module | None) -> Iterator[None]:
    """The weights of these modules, and of all in them, are where they are computed with."""
    brought: list[tuple[Any, nn.Module, Any]] = []
    try:
        for module in {id(one): one for top in modules if top is not None for one in top.modules()}.values():
            hook = _offloading(module)
            if hook is not None:
                hook.pre_forward(module)
                brought.append((hook, module, module.forward))
                module.forward = module._old_forward  # type: ignore[method-assign]
        yield
    finally:
        for hook, module, forward in reversed(brought):
            module.forward = forward  # type: ignore[method-assign]
            hook.post_forward(module, None)


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes, also while its weights are elsewhere."""
    weight = next(module.parameters())
    if weight.device.type != "meta":
        return weight.device
    hook: Any = getattr(module, "_hf_hook", None)
    for part in getattr(hook, "hooks", [hook]):
        if getattr(part, "execution_device", None) is not None:
            return torch.device(part.execution_device)
    return weight.device
