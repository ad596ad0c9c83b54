"""What path patching can be told. Imports no PyTorch."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from repro.analyses.base_specs import Of
from repro.analyses.circuit_specs import LmAnalysis
from repro.analyses.head_specs import is_class
from repro.analyses.path_patching_costs import sweep_cost
from repro.costs import Cost
from repro.errors import UserError
from repro.interventions.path_patching_nodes import EMBEDDING, check_order, parse_receiver, parse_sender
from repro.specs import Spec

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:+=-]*$")]


def _receivers(value: Any) -> Any:
    if not _listed(value):
        return value
    return [one if is_class(one) else str(parse_receiver(one, "analysis.receivers")) for one in value]


def _senders(value: Any) -> Any:
    if not _listed(value):
        return value
    return [one if _stands_for_heads(one) else str(parse_sender(one, "analysis.groups")) for one in value]


def _stands_for_heads(one: Any) -> bool:
    return is_class(one) or (isinstance(one, str) and re.fullmatch(r"\d+\.\*", one) is not None)


def _listed(value: Any) -> bool:
    return isinstance(value, list | tuple)


Receivers = Annotated[list[str], BeforeValidator(_receivers), Field(min_length=1)]
Group = Annotated[list[str], BeforeValidator(_senders), Field(min_length=1)]


class _Patching(LmAnalysis):
    """positions: where receivers receive that do not say so themselves (9.9.q@END), a name or `all`.

    mlps: whether MLPs on the way carry a change on. downstream: whether everything after the last receivers
    is recomputed, or only their own writing counts. rows: (sender, prompt, position) at once; null is what
    memory allows.
    """

    splits_over: ClassVar[str | None] = "prompts"
    positions: str = "END"
    mlps: Literal["recompute", "freeze"] = "recompute"
    downstream: Literal["recompute", "filter"] = "recompute"
    rows: PositiveInt | None = None

    def fingerprint(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"rows"})

    def items(self, of: Of) -> int | None:
        return getattr(of("")["data"], "n", None)


class PathPatching(_Patching):
    """The effect on the logit difference of every head and MLP through given receivers (arXiv 2211.00593).

    receivers: `logits`, or inputs of heads such as [9.9.q, 9.6.q]. then: lists of further receivers that
    the path leads through afterwards, e.g. [[9.9.q@END]] behind receivers [8.6.v@S2]. groups: name ->
    senders patched together, such as ["9.9", "mlp8"]. top: how many heads to name.
    """

    module: ClassVar[str] = "repro.analyses.path_patching"
    kind: Literal["path_patching"] = "path_patching"
    receivers: Literal["logits"] | Receivers = "logits"
    then: list[Receivers] = []
    groups: dict[Name, Group] = {}
    top: PositiveInt = 5

    @property
    def stages(self) -> list[list[str]]:
        """Receivers in the order of the path."""
        return [] if self.receivers == "logits" else [list(self.receivers), *self.then]

    def cost(self, subject: Any, data: Any) -> Cost:
        """Two cached runs, and changes carried to the receivers and from them to the logits."""
        return sweep_cost(subject, data, [self.stages], self, len(self.groups))

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.receivers == "logits" and self.then:
            raise ValueError("then: nothing comes after the logits. Give receivers=[9.9.q,...] first")
        stages = [[parse_receiver(one) for one in stage if not is_class(one)] for stage in self.stages]
        groups = [
            [parse_sender(one) for one in group if not _stands_for_heads(one)]
            for group in self.groups.values()
        ]
        # What classes stand for is known when the model is: then the spec is made, and checked, once more.
        check_order([group for group in groups if group], [stage for stage in stages if stage])
        if stages and stages[0] and all(one.layer == 0 for one in stages[0]):
            if not any(EMBEDDING in group for group in groups):
                raise UserError(
                    f"receivers: {', '.join(map(str, stages[0]))} are in the first layer, below every sender:"
                    " all effects would be 0. Give receivers of higher layers, or the embedding as a sender:"
                    " groups={embedding: [embedding]}"
                )
        return self


class Step(Spec):
    """Go on from the heads found last, through this input of theirs at this position (null: the sweep's).

    negative, positive: how many heads of the lowest and of the highest effects are found there.
    """

    letter: Literal["q", "k", "v"]
    position: str | None = None
    negative: Annotated[int, Field(ge=0)] = 4
    positive: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.negative + self.positive == 0:
            raise ValueError("negative, positive: expected at least one head to be found")
        return self


class IterativePathPatching(_Patching):
    """From the logits downwards: find the strongest heads, then those that act through their inputs.

    negative, positive: heads found with the direct effect on the logits. steps: what follows, each behind
    the heads of the one before: [{letter: q}, {letter: v, position: S2}].
    """

    module: ClassVar[str] = "repro.analyses.iterative_path_patching"
    splits_over: ClassVar[str | None] = None
    kind: Literal["iterative_path_patching"] = "iterative_path_patching"
    negative: Annotated[int, Field(ge=0)] = 3
    positive: Annotated[int, Field(ge=0)] = 0
    steps: list[Step] = [Step(letter="q")]

    def cost(self, subject: Any, data: Any) -> Cost:
        """A sweep for each step, if none ends early; each goes through all heads found before."""
        found = [[f"class:found.{step.letter}@{step.position or self.positions}"] for step in self.steps]
        return sweep_cost(subject, data, [found[:count][::-1] for count in range(len(found) + 1)], self)


class FlipEffects(LmAnalysis):
    """Direct effects on the logits for several ways to change the names, and whether they add up.

    flips: name -> chain of flips of the data's prompts. both, parts: the effect of flip `both` is compared
    with the sum of those of `parts` (null: not compared).
    """

    module: ClassVar[str] = "repro.analyses.flip_effects"
    kind: Literal["flip_effects"] = "flip_effects"
    flips: dict[Name, list[str]] = Field(min_length=1)
    both: str | None = None
    parts: list[str] = []
    mlps: Literal["recompute", "freeze"] = "recompute"

    def cost(self, subject: Any, data: Any) -> Cost:
        """A sweep to the logits for each flip."""
        return sweep_cost(subject, data, [[]] * len(self.flips), self)

    @model_validator(mode="after")
    def _known(self) -> Self:
        named = [*([self.both] if self.both else []), *self.parts]
        unknown = [name for name in named if name not in self.flips]
        if unknown or bool(self.both) != bool(self.parts):
            raise ValueError(
                f"both and parts must be names of flips, both given or neither: {', '.join(self.flips)}"
            )
        return self
