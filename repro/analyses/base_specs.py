"""What all analyses have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from repro.specs import Family

# The checked config by root key, as the condition of this name has it.
Of = Callable[[str], Mapping[str, Any]]


class Analysis(Family):
    """A question asked of a model or of data; `module` has the `run` that answers it.

    splits_over: over what it can be split (see `repro.shards`), in the plural; None: it cannot.
    A method `cost(subject, data) -> Cost` says what it needs before it runs (see `repro.costs`); without one,
    estimates say that it is not modelled.
    """

    splits_over: ClassVar[str | None] = None

    @property
    def trains(self) -> bool:
        """Whether it looks at the models that the config trains, and not at others."""
        return True

    def fingerprint(self) -> dict[str, Any]:
        """What of it can change a number, for the run's hash."""
        return self.model_dump(mode="json")

    def items(self, of: Of) -> int | None:
        """How many of them there are, known from the config alone; None if only model or data tell."""
        return None
