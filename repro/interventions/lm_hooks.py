"""Which module's input or output is which site, and hooks that hand it over as a whole tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from repro.errors import UserError
from repro.models.language_model import LanguageModel, Layer


class Site(Protocol):
    """What is done at a site: gets the whole tensor, returns the one to go on with."""

    @property
    def changes(self) -> bool: ...

    def __call__(self, found: Tensor) -> Tensor: ...


def add(model: LanguageModel, name: str, index: int | None, site: Site) -> list[Any]:
    """Install the hooks of a site outside the attention core; their handles."""
    if name == "token_embedding":
        return [model.embedding.register_forward_hook(_output(site))]
    if name == "logits":
        return [model.head.register_forward_hook(_output(site))]
    if name == "final_norm":
        if model.last_norm is None:
            raise UserError("site final_norm: this model has none. Choose resid_post of the last layer")
        return [model.last_norm.register_forward_hook(_output(site))]
    assert index is not None
    return _in_layer(model.layers[index], name, site)


def _in_layer(layer: Layer, name: str, site: Site) -> list[Any]:
    if name == "resid_mid":
        return _between(layer, site)
    outputs = {"attn_out": layer.attention, "resid_post": layer.block}
    inputs = {"resid_pre": layer.block, "attn_in": layer.attention}
    if name in outputs:
        return [outputs[name].register_forward_hook(_output(site))]
    if name in inputs:
        return [inputs[name].register_forward_pre_hook(_input(site), with_kwargs=True)]
    if name == "z":
        return [layer.out.register_forward_pre_hook(_input(site, _by_head(layer.heads)), with_kwargs=True)]
    rows = _Rows()
    handles = [layer.block.register_forward_pre_hook(rows.note, with_kwargs=True)]
    if name == "mlp_out":
        return [*handles, layer.down.register_forward_hook(_output(site, rows.split))]
    module = layer.mlp_entry if name == "mlp_in" else layer.down
    return [*handles, module.register_forward_pre_hook(_input(site, rows.split), with_kwargs=True)]


class _Rows:
    """OPT runs its MLP on rows and positions as one axis; this gives it both back."""

    def __init__(self) -> None:
        self._shape: tuple[int, ...] = ()

    def note(self, module: Any, args: tuple, kwargs: dict) -> None:
        self._shape = tuple((args[0] if args else kwargs["hidden_states"]).shape[:2])

    def split(self, found: Tensor) -> Tensor:
        return found.view(*self._shape, -1) if found.ndim == 2 else found


def _by_head(heads: int) -> Callable[[Tensor], Tensor]:
    return lambda found: found.unflatten(-1, (heads, -1))


def _through(site: Site, found: Tensor, view: Callable[[Tensor], Tensor] | None) -> Tensor:
    new = site(view(found) if view else found)
    return new.reshape(found.shape) if site.changes else found


def _input(site: Site, view: Callable[[Tensor], Tensor] | None = None) -> Callable[..., Any]:
    def hook(module: Any, args: tuple, kwargs: dict) -> Any:
        if args:
            return (_through(site, args[0], view), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": _through(site, kwargs["hidden_states"], view)}

    return hook


def _output(site: Site, view: Callable[[Tensor], Tensor] | None = None) -> Callable[..., Any]:
    def hook(module: Any, args: tuple, output: Any) -> Any:
        if isinstance(output, tuple):
            return (_through(site, output[0], view), *output[1:])
        return _through(site, output, view)

    return hook


def _between(layer: Layer, site: Site) -> list[Any]:
    """resid_mid is no module's output: the sum of what enters the block and what attention adds.

    Editing it edits what attention adds by the difference, so that both branches after it see the change.
    """
    if layer.mid_module is not None:
        return [layer.mid_module.register_forward_hook(_output(site))]
    entered: list[Tensor] = []

    def note(module: Any, args: tuple, kwargs: dict) -> None:
        entered[:] = [args[0] if args else kwargs["hidden_states"]]

    def hook(module: Any, args: tuple, output: tuple) -> Any:
        middle = output[0] + entered.pop()
        new = site(middle)
        return (output[0] + (new - middle), *output[1:]) if site.changes else None

    return [
        layer.block.register_forward_pre_hook(note, with_kwargs=True),
        layer.attention.register_forward_hook(hook),
    ]
