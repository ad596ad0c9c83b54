"""How heads, MLPs and classes of heads are written in configs. Imports no PyTorch.

A head is "layer.head" ("9.9"), both from 0. class:NAME stands for the heads of a class of the circuit, and
takes what a head may have behind it: class:name_movers.q, class:induction@S2.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

Natural = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:+=-]*$")]
CLASS = re.compile(r"class:(?P<name>[A-Za-z0-9_-]+)(?P<rest>(?:\.[qkv])?(?:@\S+)?)")
_HEAD = re.compile(r"L?(\d+)[.:H](\d+)", re.IGNORECASE)
_NODE = re.compile(r"(?:mlp(?P<mlp>\d+)|(?P<layer>\d+)[.:](?P<head>\d+|\*))(?:@(?P<position>\S+))?")


def is_class(written: Any) -> bool:
    """Whether this names a class of heads, not heads."""
    return isinstance(written, str) and CLASS.fullmatch(written.strip()) is not None


def parse_head(written: Any) -> str:
    """The one spelling "layer.head". Raises `ValueError` naming the valid spellings."""
    if isinstance(written, list | tuple) and len(written) == 2:
        written = f"{written[0]}.{written[1]}"
    if is_class(written):
        return str(written)
    match = _HEAD.fullmatch(written.strip()) if isinstance(written, str) else None
    if match is None:
        why = "; without quotes YAML reads 10.10 as the number 10.1" if isinstance(written, float) else ""
        raise ValueError(f'expected a head as "layer.head" in quotes, such as "9.9"{why}')
    return f"{int(match[1])}.{int(match[2])}"


def split_head(head: str) -> tuple[int, int]:
    """(layer, head) of a head in its one spelling."""
    layer, index = head.split(".")
    return int(layer), int(index)


def parse_node(written: Any) -> str:
    """A node in its one spelling: "9.9@END", "9.9" (all positions), "9.*" (all heads), "mlp0", "mlp0@END".

    Raises `ValueError` naming the valid spellings.
    """
    if is_class(written):
        return str(written)
    match = _NODE.fullmatch(written.strip()) if isinstance(written, str) else None
    if match is None:
        raise ValueError('expected "layer.head", "layer.*" or "mlpLAYER", each with or without "@POSITION"')
    what = f"mlp{int(match['mlp'])}" if match["mlp"] else f"{int(match['layer'])}.{match['head']}"
    return what + (f"@{match['position']}" if match["position"] else "")


def split_node(node: str) -> tuple[int, int | str | None, str | None]:
    """(layer, head, position) of a node: head None for an MLP, "*" for all heads; position None for all."""
    what, _, position = node.partition("@")
    if what.startswith("mlp"):
        return int(what[3:]), None, position or None
    layer, head = what.split(".")
    return int(layer), head if head == "*" else int(head), position or None


LmHead = Annotated[str, BeforeValidator(parse_head)]
Node = Annotated[str, BeforeValidator(parse_node)]
