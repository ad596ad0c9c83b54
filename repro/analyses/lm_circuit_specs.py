"""What the analyses of circuits can be told: how to find one, how to evaluate one. Imports no PyTorch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from repro.analyses.circuit_specs import Classes, LmAnalysis, Share
from repro.analyses.head_specs import LmHead, Name, Natural
from repro.specs import Spec


class WithCircuit(LmAnalysis):
    """What every analysis of a circuit is told beside which circuit it is.

    per_template: reference prompts of each template for means; null, or data that cannot draw: the corrupt
    prompts of the data. batch: rows in one forward pass; it changes no number beyond rounding.
    """

    per_template: PositiveInt | None = 50
    reference_seed: Natural = 1
    batch: PositiveInt = 64


class FindCircuit(WithCircuit):
    """Search for the circuit, verify each class by knocking it out, and draw it as a graph.

    circuit: whose graph and knockouts are given; with one that is not `found`, the steps of the search are
    measured again with its classes as receivers. attention_keys: where the heads' attention is measured.
    """

    module: ClassVar[str] = "repro.analyses.find_circuit"
    kind: Literal["find_circuit"] = "find_circuit"
    circuit: Literal["auto", "found"] | Classes = "found"
    attention_keys: list[str] | None = None


class Greedy(Spec):
    """Search for sets that tell circuit and model apart: `candidates` nodes a step, `steps`, `runs`.

    keep: so many of the runs, those with the largest gap.
    """

    candidates: PositiveInt = 10
    steps: PositiveInt = 10
    runs: Natural = 10
    keep: PositiveInt = 5


class CircuitEvaluation(WithCircuit):
    """Faithfulness, completeness and minimality of a circuit.

    sets: name -> classes and heads that are knocked out together, beside each class on its own; of a circuit
    found here, the classes that it has. random_sets: each node with probability 1/2.
    minimality_sets: head ("9.9") -> heads and classes that are knocked out when its score is taken; for the
    others, and in a circuit found here, the rest of their class. minimality_share: least score, as a share
    of the whole model's logit difference. naive: a smaller circuit, evaluated likewise wherever the circuit
    is not the found one; naive_candidates: of its greedy search. seed: of random and greedy sets.
    """

    module: ClassVar[str] = "repro.analyses.circuit_evaluation"
    kind: Literal["circuit_evaluation"] = "circuit_evaluation"
    sets: dict[Name, Annotated[list[str], Field(min_length=1)]] = {}
    random_sets: Natural = 100
    greedy: Greedy = Greedy()
    minimality_sets: dict[LmHead, list[str]] = {}
    minimality_share: Share = 0.01
    naive: Classes = {}
    naive_candidates: PositiveInt = 5
    seed: Natural = 0
