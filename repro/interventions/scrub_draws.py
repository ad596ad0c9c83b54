"""Causal scrubbing: a hypothesis as a tree, and which prompt each part of the model is given.

A hypothesis says which parts matter and what of their input matters. Every node of the tree gets inputs that
agree with the reference prompt only in what its sampler keeps; everything that no node claims gets another
prompt. Nothing here knows a model. Source: Redwood Research's causal-scrubbing write-up (2022).

Samplers: "exact" keeps the prompt; "unconditional" draws any prompt; "twin" is the prompt's corrupt twin;
"corrupt" draws any corrupt twin; a list of features, such as [IO, order], draws a prompt that agrees in them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from repro.errors import UserError
from repro.interventions.path_patching_nodes import Sender

log = logging.getLogger(__name__)
NAMED = ("exact", "unconditional", "twin", "corrupt")
Sampler = str | tuple[str, ...]
LETTERS = ("q", "k", "v", "mlp")


@dataclass(frozen=True)
class Node:
    """Part of a hypothesis: the direct paths from some heads or MLPs, at one position, into their parent.

    through: the parent's input that the paths enter by: q, k, v of its heads, or mlp; None below the root,
    whose input is the residual stream under the logits. sampler: how this node's prompt is drawn from its
    parent's. others: how the prompt is drawn that feeds those of its inputs which no child claims.
    """

    name: str
    senders: tuple[Sender, ...]
    at: str
    through: str | None
    sampler: Sampler = "exact"
    others: Sampler = "unconditional"
    children: tuple[Node, ...] = ()


@dataclass(frozen=True)
class Hypothesis:
    """The root: what its own prompt and all unclaimed inputs are drawn by, and its children."""

    sampler: Sampler = "exact"
    others: Sampler = "unconditional"
    children: tuple[Node, ...] = ()
    at: str = "END"

    def nodes(self) -> Iterator[Node]:
        """All nodes, parents before their children."""
        stack = list(self.children)
        while stack:
            node = stack.pop(0)
            yield node
            stack[:0] = node.children


def check(hypothesis: Hypothesis, parallel: bool) -> None:
    """Refuse a tree whose paths do not exist, or in which two nodes claim one input.

    parallel: whether heads and MLP of one layer read the same stream.
    """
    _check_children(None, hypothesis.children, parallel)


def reads_from(sender: Sender, parent: Sender | None, parallel: bool) -> bool:
    """Whether a direct path leads from a sender's output to a parent's input (None: the logits)."""
    if parent is None:
        return True
    if parent.head is not None or parallel:
        return sender.layer < parent.layer
    return sender.enters < parent.enters


def _check_children(parent: Node | None, children: Sequence[Node], parallel: bool) -> None:
    claimed: dict[tuple[Any, ...], str] = {}
    for child in children:
        where = f"hypothesis node {child.name}"
        if (child.through is None) != (parent is None):
            valid = "none: its parent is the root" if parent is None else ", ".join(LETTERS)
            raise UserError(f"{where}: through is {child.through}. Valid: {valid}")
        receivers = [None] if parent is None else _receivers(parent, child, where)
        for receiver in receivers:
            reached = [one for one in child.senders if reads_from(one, receiver, parallel)]
            for sender in reached:
                key = (str(receiver), child.through, sender, child.at)
                if claimed.setdefault(key, child.name) != child.name:
                    raise UserError(f"{where}: the path of {sender} is claimed by {claimed[key]}, too")
        lost = [
            str(one) for one in child.senders if not any(reads_from(one, to, parallel) for to in receivers)
        ]
        if lost:
            assert parent is not None
            raise UserError(
                f"{where}: {', '.join(lost)} lies above all of {parent.name}, so no path leads there"
            )
        _check_children(child, child.children, parallel)


def _receivers(parent: Node, child: Node, where: str) -> list[Sender | None]:
    heads = child.through != "mlp"
    receivers: list[Sender | None] = [one for one in parent.senders if (one.head is not None) == heads]
    if not receivers:
        raise UserError(
            f"{where}: {parent.name} has no {'heads' if heads else 'MLPs'} to enter by {child.through}"
        )
    if child.through in ("q", "mlp") and child.at != parent.at:
        raise UserError(
            f"{where}: {child.through} inputs of {parent.name} are read at {parent.at}; got at={child.at}."
            f" Give at={parent.at}"
        )
    return receivers


@dataclass(frozen=True)
class Table:
    """The prompts to draw from: `clean` rows, then as many corrupt twins; features of the clean ones."""

    clean: int
    features: Mapping[str, Sequence[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Draw:
    """Rows of the table for a node, one a sample: its own prompt, and the one for unclaimed inputs."""

    own: np.ndarray
    other: np.ndarray


def draw(hypothesis: Hypothesis, table: Table, samples: int, seed: int) -> dict[str, Draw]:
    """Prompts of every node, "" being the root; names of nodes are paths such as "movers/inhibition".

    Reference prompts are drawn with replacement. Raises `UserError` for features that the data lack.
    """
    random = np.random.default_rng(seed)
    reference = random.integers(table.clean, size=samples)
    drawn: dict[str, Draw] = {}

    def visit(path: str, node: Node | Hypothesis, parent: np.ndarray) -> None:
        own = sample(node.sampler, parent, table, random)
        other = sample(node.others, own, table, random) if node.children or path == "" else own
        drawn[path] = Draw(own, other)
        for child in node.children:
            visit(f"{path}/{child.name}".lstrip("/"), child, own)

    visit("", hypothesis, reference)
    return drawn


def sample(sampler: Sampler, rows: np.ndarray, table: Table, random: np.random.Generator) -> np.ndarray:
    """Rows drawn for each of `rows`, as the sampler says, uniformly and with replacement."""
    if sampler == "exact":
        return rows
    if sampler == "unconditional":
        return random.integers(table.clean, size=len(rows))
    if sampler == "twin":
        return rows % table.clean + table.clean
    if sampler == "corrupt":
        return random.integers(table.clean, size=len(rows)) + table.clean
    if isinstance(sampler, str):
        valid = f"{', '.join(NAMED)}, or a list of features such as [IO, order]"
        raise UserError(f"sampler: got {sampler!r}. Valid: {valid}")
    unknown = [name for name in sampler if name not in table.features]
    if unknown:
        valid = ", ".join(table.features) or "none"
        raise UserError(f"sampler: this data has no feature {', '.join(unknown)}. Valid: {valid}")
    keys = list(zip(*(table.features[name] for name in sampler), strict=True))
    alike: dict[Any, list[int]] = {}
    for row, key in enumerate(keys):
        alike.setdefault(key, []).append(row)
    wanted = [keys[row % table.clean] for row in rows]
    smallest = min(len(alike[key]) for key in wanted)
    if smallest < 2:
        log.warning(
            "some prompts have no other that agrees with them in %s: they stand for themselves. Give more"
            " prompts (data.n)", ", ".join(sampler),
        )  # fmt: skip
    return np.array([alike[key][random.integers(len(alike[key]))] for key in wanted])
