"""What an analysis asks of a model, in passes over sequences: the currency of estimates.

An analysis says its cost without a model at hand, from its own settings and sizes. Its spec has a method

    def cost(self, subject, data) -> Cost

with the arguments of the analysis' `run`, before anything is loaded: `subject` is the `Shape` of a loaded
model (its `layers`, `heads`, ...), or by condition a `Trainee`; `data` is the data's spec. It returns passes:

    per_prompt = Work("every head of every layer replaced", sequences=prompts, length=tokens,
                      forwards=subject.layers * subject.heads)
    return Cost((Work("caches", sequences=2 * prompts, length=tokens), per_prompt))

What is no pass through the model, such as a few rows through the MLPs alone, goes into `flops`. What cannot
be known is not invented: leave it out and say so in `lines`, or return `not_modelled(...)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Sized(Protocol):
    """What has sizes: see `repro.models.shapes.Shape`."""

    @property
    def parameters(self) -> int: ...

    def weights_bytes(self, dtype: str) -> int: ...

    def forward_flops(self, length: int, unembedded: float = 0, causal: bool = False) -> float: ...

    def backward_flops(
        self, length: int, unembedded: float = 0, causal: bool = False, weight_gradients: bool = False
    ) -> float: ...


@dataclass(frozen=True)
class Work:
    """Sequences of one length that go through the model.

    sequences: how many, in each pass; batch: how many together. length: tokens. forwards, backwards: passes;
    backward ones lead to activations, with weight_gradients also to weights. recomputed: activations are not
    kept but computed again on the way back (checkpointing). unembedded: positions of a sequence that get
    logits. share: of the operations that are left where a fast path saves the rest.
    """

    says: str
    sequences: float
    length: int
    forwards: float = 1
    backwards: float = 0
    weight_gradients: bool = False
    recomputed: bool = False
    unembedded: float = 1
    batch: int = 1
    share: float = 1.0

    def flops(self, shape: Sized) -> float:
        """Operations for a model of this shape."""
        forwards = self.forwards + (self.backwards if self.recomputed else 0)
        one = forwards * shape.forward_flops(self.length, self.unembedded)
        if self.backwards:
            back = shape.backward_flops(self.length, self.unembedded, weight_gradients=self.weight_gradients)
            one += self.backwards * back
        return self.share * self.sequences * one

    @property
    def passes(self) -> float:
        """How often the weights are read: once a batch and pass."""
        return self.sequences / self.batch * (self.forwards + self.backwards * (2 if self.recomputed else 1))


@dataclass(frozen=True)
class Cost:
    """Passes, and operations beside them. lines: what is left out or assumed, for people.

    held_bytes: what stays in memory all the time, beside weights and activations.
    """

    works: tuple[Work, ...] = ()
    flops: float = 0.0
    lines: tuple[str, ...] = ()
    modelled: bool = True
    held_bytes: float = 0.0

    @property
    def forward_tokens(self) -> float:
        """Tokens that go forward through the model."""
        return sum(work.sequences * work.length * work.forwards for work in self.works)

    @property
    def backward_tokens(self) -> float:
        """Tokens whose gradients come back."""
        return sum(work.sequences * work.length * work.backwards for work in self.works)

    def total_flops(self, shape: Sized) -> float:
        """Operations for a model of this shape."""
        return self.flops + sum(work.flops(shape) for work in self.works)


def not_modelled(what: str, why: str = "its cost is not modelled") -> Cost:
    """For an analysis whose cost nobody has written down: nothing is counted, and the estimate says so."""
    return Cost(lines=(f"{what}: {why}; nothing is counted for it",), modelled=False)


def added(costs: Sequence[Cost]) -> Cost:
    """All of them, one after the other."""
    return Cost(
        tuple(work for cost in costs for work in cost.works),
        sum(cost.flops for cost in costs),
        tuple(line for cost in costs for line in cost.lines),
        all(cost.modelled for cost in costs),
        max((cost.held_bytes for cost in costs), default=0.0),
    )
