"""Circuits in configs: classes of heads, how to find them on a model, and who may name them.

A circuit is a mapping of classes, each with its heads and the named position at which they act:

    movers: {heads: ["9.9", "9.6"], at: END}

Imports no PyTorch.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from repro.analyses.base_specs import Analysis
from repro.analyses.head_specs import LmHead, Name
from repro.specs import Spec

LOGITS = "logits"
Share = Annotated[float, Field(ge=0)]


class HeadClass(Spec):
    """Heads that do the same, and the named position at which they act (null: everywhere)."""

    heads: list[LmHead]
    at: str | None = "END"


Classes = dict[Name, HeadClass]


class Shape(Spec):
    """The model that a circuit was found in: its family, layers, and heads a layer."""

    family: str
    depth: PositiveInt
    heads: PositiveInt


class Step(Spec):
    """One step of the search for a circuit, by path patching.

    name: of the class it gives. into: `logits`, or CLASS.LETTER for the query, key or value inputs of a
    class of an earlier step. at: where senders and receivers act. sign: of the change of the logit
    difference when the path is corrupted; -1 for heads that help. after: classes that are knocked out
    first (into logits only), for heads that take over. at_most, threshold: instead of the search's own.
    """

    name: Name
    into: str = LOGITS
    at: str = "END"
    sign: Literal[-1, 1] = -1
    after: list[str] = []
    at_most: PositiveInt | None = None
    threshold: Share | None = None

    @model_validator(mode="after")
    def _into_is_known(self) -> Self:
        letter = self.into.rpartition(".")[2]
        if self.into != LOGITS and (letter not in ("q", "k", "v") or self.into.count(".") < 1):
            raise ValueError(f"into: got {self.into!r}. Valid: logits, or CLASS.q, CLASS.k, CLASS.v")
        if self.into == LOGITS and self.at != "END":
            raise ValueError(f"at: got {self.at!r}. Heads act on the logits at END only")
        if self.after and self.into != LOGITS:
            raise ValueError("after: only steps into the logits can be repeated after a knockout")
        return self


STEPS = [
    Step(name="movers", into=LOGITS, at="END", sign=-1),
    Step(name="negative_movers", into=LOGITS, at="END", sign=1),
    Step(name="inhibition", into="movers.q", at="END", sign=-1),
    Step(name="repeats", into="inhibition.v", at="S2", sign=-1),
    Step(name="previous", into="repeats.k", at="S1+1", sign=-1),
]


class Search(Spec):
    """How a circuit is found on the model at hand: class by class, from the logits downwards.

    steps: in order. threshold: least change of the mean logit difference, as a share of the clean one.
    at_most: heads a class, those with the strongest effects; at_least: so many also below the threshold.
    mlps: whether MLPs carry an effect on.
    verified_share: by how much of the clean logit difference knocking a class out must move it, in the
    direction its path patching effect says, for the class to count as verified.
    """

    steps: list[Step] = Field(default=STEPS, min_length=1)
    threshold: Share = 0.02
    at_most: PositiveInt = 4
    at_least: Annotated[int, Field(ge=0)] = 0
    mlps: Literal["recompute", "freeze"] = "recompute"
    verified_share: Share = 0.05

    @model_validator(mode="after")
    def _steps_follow_each_other(self) -> Self:
        seen: list[str] = []
        for step in self.steps:
            named = [] if step.into == LOGITS else [step.into.rpartition(".")[0]]
            for name in [*named, *step.after]:
                if name not in seen:
                    raise ValueError(
                        f"step {step.name}: {name!r} is no class of an earlier step."
                        f" Earlier ones: {', '.join(seen) or 'none'}"
                    )
            if step.name in (*seen, LOGITS):
                raise ValueError(f"step {step.name}: the name is taken. Names must differ")
            seen.append(step.name)
        return self


class LmAnalysis(Analysis):
    """A question asked of a language model. Heads may be named by classes of a circuit: class:NAME.

    circuit: a mapping of classes; `found`: searched for on this model; `auto`: `published`, if the model has
    the shape `circuit_of` of the one it was found in, else `found`. Without class:NAME it does not matter.
    """

    models: ClassVar[tuple[str, ...]] = ("hf", "organism")
    circuit: Literal["auto", "found"] | Classes = "auto"
    published: Classes = {}
    circuit_of: Shape | None = None
    search: Search = Search()

    def for_subject(self, subject: Any, data: Any) -> tuple[Self, dict[str, str]]:
        """With heads of this model for class names, and what each name stands for."""
        from repro.analyses.named_heads import in_heads  # and with it PyTorch

        return in_heads(self, subject, data)
