"""What all analyses have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

from repro.specs import Family

# The checked config by root key, as the condition of this name has it.
Of = Callable[[str], Mapping[str, Any]]


class Analysis(Family):
    """A question asked of a model or of data; `module` has the `run` that answers it.

    models: kinds of model that it can be asked of.
    splits_over: over what it can be split (see `repro.shards`), in the plural; None: it cannot.
    A method `cost(subject, data) -> Cost` says what it needs before it runs (see `repro.costs`); without one,
    estimates say that it is not modelled.
    """

    splits_over: ClassVar[str | None] = None
    models: ClassVar[tuple[str, ...]] = ("icl_transformer", "none")

    @property
    def trains(self) -> bool:
        """Whether it looks at the models that the config trains, and not at others."""
        return True

    def fingerprint(self) -> dict[str, Any]:
        """What of it can change a number, for the run's hash."""
        return self.model_dump(mode="json")

    def for_subject(self, subject: Any, data: Any) -> tuple[Self, dict[str, str]]:
        """The same question put to this model and data, and what names in it stand for there."""
        return self, {}

    def items(self, of: Of) -> int | None:
        """How many of them there are, known from the config alone; None if only model or data tell."""
        return None
