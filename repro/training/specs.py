"""How a model is trained: schedules as data, the optimiser, and the conditions of one figure. No JAX."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from repro.errors import UserError
from repro.interventions.specs import Manipulation, fingerprint
from repro.specs import Spec

Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]


class Every(Spec):
    """Every `every` sequences, from `start` (included) to `stop` (excluded; null: to the end).

    A denser window is a second entry: [{every: 5000}, {every: 500, start: 100000, stop: 300000}].
    """

    every: Positive
    start: Natural = 0
    stop: Positive | None = None


class LogSpaced(Spec):
    """`log_spaced` points with equal ratios, from `first` to the end of training."""

    log_spaced: Annotated[int, Field(ge=2)]
    first: Positive = 32


class Training(Spec):
    """Training from scratch on sequences drawn anew at every step.

    All times are counted in sequences seen, as in the papers, not in steps. `evaluate_every` and
    `evaluate_at` are united, and so are those of checkpoints; there is always an evaluation and, if
    any is asked for, a checkpoint at the end.

    optimizer: Adam without clipping. schedule: a constant learning rate; warmup_decay (linear from
    1e-5 in `warmup_steps` steps, then to `final_learning_rate` with the square root of the share of steps
    left, gradients clipped to norm 5); or cosine (linear warm-up from 1e-6, then half a cosine to
    `final_learning_rate`, not clipped).
    weight_decay multiplies the sum of the L2 norms (not squared) of all parameter arrays.
    """

    sequences: Positive
    batch: Positive = 32
    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    schedule: Literal["constant", "warmup_decay", "cosine"] = "constant"
    warmup_steps: Positive = 4000
    final_learning_rate: Annotated[float, Field(ge=0)] = 1e-5
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    evaluate_every: Positive | None = None
    evaluate_at: list[Every | LogSpaced | Natural] = []
    checkpoint_every: Positive | None = None
    checkpoint_at: list[Every | LogSpaced | Natural] = []

    @model_validator(mode="after")
    def _at_least_one_step(self) -> Self:
        if self.sequences < self.batch:
            raise UserError(
                f"training.sequences: at least one batch of {self.batch} sequences, got {self.sequences}."
                " Times are counted in sequences, not in steps"
            )
        return self


class Condition(Spec):
    """What differs in one training run of a figure; everything else is as in the experiment.

    `manipulations` replaces the experiment's list; the other keys are merged into it.
    """

    manipulations: list[dict[str, Any]] | None = None
    model: dict[str, Any] = {}
    sequences: dict[str, Any] = {}
    training: dict[str, Any] = {}
    seed: dict[str, int] = {}

    def fingerprint(self) -> dict[str, Any]:
        """For the run's hash: manipulations in their one spelling, grafts by what they take."""
        plain = self.model_dump(mode="json")
        if self.manipulations is not None:
            chosen = [Manipulation.choose(item, "conditions.manipulations") for item in self.manipulations]
            plain["manipulations"] = [fingerprint(item) for item in chosen]
        return plain
