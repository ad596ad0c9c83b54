"""What is sent and received in path patching, as text and as values. Imports no PyTorch.

A sender is written "9.6" (layer.head), "mlp9" or "embedding"; a receiver "9.9.q", "8.6.v@S2" (layer.head,
the letter of its input, and the named position where it receives, if it is not that of the whole sweep).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from repro.errors import UserError

LETTERS = ("q", "k", "v")
ALL = "all"
_SENDER = re.compile(r"(?:(\d+)\.(\d+)|mlp(\d+))", re.IGNORECASE)
_RECEIVER = re.compile(r"(\d+)\.(\d+)\.([qkv])(?:@(\S+))?")


@dataclass(frozen=True)
class Sender:
    """A head's output, an MLP's output (head None), or what enters the first block (layer -1)."""

    layer: int
    head: int | None = None

    @property
    def enters(self) -> int:
        """When its output joins the residual stream: 2 * layer for a head, one later for an MLP."""
        return -1 if self.layer < 0 else 2 * self.layer + (self.head is None)

    def __str__(self) -> str:
        if self.layer < 0:
            return "embedding"
        return f"mlp{self.layer}" if self.head is None else f"{self.layer}.{self.head}"


EMBEDDING = Sender(-1)


@dataclass(frozen=True)
class Receiver:
    """The query, key or value input of one head (k, v: of a key/value head). position None: the sweep's."""

    layer: int
    head: int
    letter: str
    position: str | None = None

    def __str__(self) -> str:
        return f"{self.layer}.{self.head}.{self.letter}" + (f"@{self.position}" if self.position else "")


def parse_sender(text: object, where: str = "senders") -> Sender:
    """Raises `UserError` that says how senders are written."""
    if isinstance(text, Sender):
        return text
    if text == "embedding":
        return EMBEDDING
    match = _SENDER.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        why = " (without quotes YAML reads 9.10 as the number 9.1)" if isinstance(text, float) else ""
        raise UserError(
            f"{where}: got {text!r}{why}. Write a head as '9.6' in quotes, an MLP as 'mlp9', or 'embedding'"
        )
    return Sender(int(match[1]), int(match[2])) if match[3] is None else Sender(int(match[3]))


def parse_receiver(text: object, where: str = "receivers") -> Receiver:
    """Raises `UserError` that says how receivers are written."""
    if isinstance(text, Receiver):
        return text
    match = _RECEIVER.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise UserError(
            f"{where}: got {text!r}. Write 'logits', or a list like [9.9.q,9.6.q]: layer.head.letter with the"
            " letter q, k or v, if need be with a named position of the data: 8.6.v@S2"
        )
    return Receiver(int(match[1]), int(match[2]), match[3], match[4])


def all_senders(depth: int, heads: int) -> list[Sender]:
    """Every head and every MLP, layer by layer."""
    return [Sender(layer, head) for layer in range(depth) for head in [*range(heads), None]]


def check_order(groups: Sequence[Sequence[Sender]], stages: Sequence[Sequence[Receiver]]) -> None:
    """Refuse groups of senders, or receivers, that nothing before them can reach.

    A single sender at or above all receivers is no mistake in a sweep: its effect is 0. Raises `UserError`
    for a group none of whose members is below a receiver, and for receivers that are not above the ones
    before them.
    """
    if not stages:
        return
    for before, after in zip(stages, stages[1:], strict=False):
        if min(one.layer for one in before) >= max(one.layer for one in after):
            raise UserError(
                f"receivers: {', '.join(map(str, after))} are not above {', '.join(map(str, before))}, so no"
                " path leads from these to those. List them in the order of the path, lower layers first"
            )
    top = max(one.layer for one in stages[0])
    for group in groups:
        if all(one.enters >= 2 * top for one in group):
            raise UserError(
                f"senders: {', '.join(map(str, group))} above receivers: none is below layer {top}, the"
                f" highest of the receivers {', '.join(map(str, stages[0]))}. Choose senders of lower layers,"
                " or higher receivers"
            )
