"""A circuit as a value: classes of heads, each with the position at which they act.

`circuit_search.resolve` says which circuit an analysis is about. Here a circuit's classes become heads,
nodes, receivers and masks, so that other analyses can name classes where they take heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from repro.analyses.circuit_specs import Classes
from repro.analyses.head_specs import split_head
from repro.analyses.lm_circuit_specs import WithCircuit
from repro.data.token_batch import TokenBatch
from repro.data.token_pairs import PromptPairs
from repro.errors import UserError
from repro.interventions.mean_ablation import Means, head_masks, reference_means
from repro.interventions.path_patching_nodes import Receiver
from repro.models.language_model import LanguageModel

Masks = dict[tuple[str, int], Tensor]


@dataclass(frozen=True, order=True)
class Node:
    """A head at a named position; at None: at all positions."""

    layer: int
    head: int
    at: str | None = "END"

    @property
    def written(self) -> str:
        """ "9.9", without the position."""
        return f"{self.layer}.{self.head}"

    def __str__(self) -> str:
        return self.written + (f"@{self.at}" if self.at else "")


@dataclass(frozen=True)
class Circuit:
    """Classes of nodes, in the order given. source: given, published, or found; note: the same in words."""

    classes: Mapping[str, tuple[Node, ...]]
    source: str
    note: str

    @classmethod
    def of(cls, classes: Classes, source: str, note: str) -> Circuit:
        """From the classes of a config."""
        return cls(
            {
                name: tuple(Node(*split_head(head), one.at) for head in one.heads)
                for name, one in classes.items()
            },
            source,
            note,
        )

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes, class by class, each once."""
        return tuple(dict.fromkeys(node for nodes in self.classes.values() for node in nodes))

    def __getitem__(self, name: str) -> tuple[Node, ...]:
        """The nodes of a class. Raises `UserError` that lists the classes."""
        if name not in self.classes:
            raise UserError(
                f"circuit: got class {name!r}. Classes of the {self.source} circuit:"
                f" {', '.join(self.classes)}"
            )
        return self.classes[name]

    def class_of(self, node: Node) -> str:
        """The first class that has a node."""
        return next(name for name, nodes in self.classes.items() if node in nodes)

    def heads(self, names: Sequence[str]) -> list[str]:
        """Heads "layer.head", each once, of a list in which classes stand for their heads."""
        found: list[str] = []
        for name in names:
            found += [node.written for node in self[name]] if name in self.classes else [name]
        return list(dict.fromkeys(found))

    def choose(self, names: Sequence[str], where: str) -> tuple[Node, ...]:
        """Nodes of classes, heads ("9.9", at all positions the circuit has it) and nodes ("9.9@END")."""
        found: list[Node] = []
        for name in names:
            members = self.classes.get(name) or [
                node for node in self.nodes if name in (node.written, str(node))
            ]
            if not members:
                raise UserError(
                    f"{where}: {name!r} is not in the circuit. Classes: {', '.join(self.classes)}; nodes:"
                    f" {', '.join(map(str, self.nodes))}"
                )
            found += members
        return tuple(dict.fromkeys(found))

    def receivers(
        self, model: LanguageModel, name: str, letter: str, at: str | None = None
    ) -> list[Receiver]:
        """The inputs (q, k or v) of a class, at its own position, or at another one (of keys and values)."""
        share = 1 if letter == "q" else model.heads // model.kv_heads
        return list(
            dict.fromkeys(
                Receiver(node.layer, node.head // share, letter, at or node.at) for node in self[name]
            )
        )

    def check(self, model: LanguageModel, pairs: PromptPairs) -> None:
        """Refuse heads that the model does not have, and positions that the data do not have."""
        for name, nodes in self.classes.items():
            for node in nodes:
                model.check_head(node.layer, node.head, f"circuit.{name}")
                if node.at is not None and node.at not in pairs.positions:
                    raise UserError(
                        f"circuit.{name}: got position {node.at!r}. This data has:"
                        f" {', '.join(pairs.positions)}"
                    )


def node_masks(
    model: LanguageModel, batch: TokenBatch, positions: Mapping[str, Tensor], nodes: Sequence[Node]
) -> Masks:
    """Where nodes are, for knockouts: ("z", layer) -> booleans [B, T, H]."""
    places = [
        (node.layer, node.head, None if node.at is None else positions[node.at][:, None]) for node in nodes
    ]
    return head_masks(model, batch, places)


def means_of(
    model: LanguageModel, data: Any, pairs: PromptPairs, spec: WithCircuit
) -> tuple[Means, str]:  # fmt: skip
    """What knocked-out heads are replaced by, by template and position, and over which prompts in words."""
    if spec.per_template is None or not hasattr(data, "reference"):
        means = reference_means(model, pairs.corrupt, pairs.groups, ["z"], rows=spec.batch)
        words = f"mean by group and position over the {len(pairs)} corrupt prompts"
    else:
        drawn = data.tokenise(data.reference(spec.per_template, spec.reference_seed), model.tokenizer)
        means = reference_means(model, drawn.batch, drawn.groups, ["z"], rows=spec.batch)
        words = f"mean by template and position over {spec.per_template} ABC prompts of each template"
    means.check(pairs.clean, pairs.groups)
    return means, words


def standard_error(values: Tensor) -> float:
    """Of a mean over prompts; NaN for one prompt."""
    return float(values.double().std(-1)) / len(values) ** 0.5 if len(values) > 1 else float("nan")


def per_prompt(values: Sequence[Tensor]) -> Tensor:
    """Portions [..., B] of prompts as one, on the CPU, in float64."""
    return torch.cat([value.double().cpu() for value in values], dim=-1)
