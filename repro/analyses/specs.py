"""What each analysis can be told, one class a question."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from repro.specs import Family

Factor = Literal["a", "b", "c"]


class Analysis(Family):
    """A question asked of a model or of data; `module` has the `run` that answers it."""


class ToyFactors(Analysis):
    """Learn the product of three vectors by gradient descent, with none or some of them clamped to the truth.

    dimension: length of each vector.
    conditions: name -> factors held at their true value.
    report_at: iterations whose loss and progress become scalars.
    """

    module: ClassVar[str] = "repro.analyses.toy_factors"
    kind: Literal["toy_factors"] = "toy_factors"
    dimension: PositiveInt = 20
    iterations: PositiveInt = 1000
    learning_rate: PositiveFloat = 1.0
    seed: int = Field(1, ge=0)
    conditions: dict[str, list[Factor]] = Field({"none": [], "c": ["c"], "bc": ["b", "c"]}, min_length=1)
    report_at: list[int] = [0, 50, 100, 200, 300, 500, 700, 999]
