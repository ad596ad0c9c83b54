"""What a paper claims, in a form that can be checked.

`papers/<slug>/claims.yaml` is a mapping:

    paper_subject: data=omniglot_features     what to add to a command to run on the paper's own data or model
    reason: why claims without a criterion for other models or data have none; a claim may give its own
    claims:
      - id: IH-C3
        source: Fig. 3b
        says: several heads of layer 1 become induction heads
        experiment: formation                 or a list; where the measures are found
        published: the values as printed, a text, number or list shown in tables
        same_data: [checks]                   judged on the paper's own data or model; without it: `otherwise`
        otherwise: [checks]                   judged on any other data or model of the user
        on_embedded: [checks] | otherwise | same_data     judged on the embedded default; left out: not judged

A check is `{measure, op, value, tolerance}`: measure is a formula (repro/expressions.py) or a list of
formulas, op one of
    < <= > >=            every measured number against `value` (a number or a formula)
    between              value: [low, high], ends included
    within               |measured - value| <= tolerance, element by element
    within_relative      |measured - value| <= tolerance * |value|
    increasing           each number exceeds the one before; with a tolerance it may fall short by that much
    decreasing           likewise (`order` is another word for increasing, for a list of measures)
All checks of a claim must hold. A measured NaN never holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import yaml
from pydantic import Field, model_validator

from repro import expressions
from repro.errors import UserError
from repro.specs import Spec

Operator = Literal[
    "<", "<=", ">", ">=", "between", "within", "within_relative", "increasing", "decreasing", "order"
]  # fmt: skip


class Check(Spec):
    """One machine-checkable condition.

    published: the paper's number. confirmed: it stands in print, and was not read off a plot.
    """

    measure: str | list[str]
    op: Operator
    value: float | str | list[float] | None = None
    tolerance: float = Field(default=0.0, ge=0)
    published: float | str | list[float] | None = None
    confirmed: bool = True

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for formula in [*self.measures, *([self.value] if isinstance(self.value, str) else [])]:
            expressions.check(formula)
        monotone = self.op in ("increasing", "decreasing", "order")
        if monotone != (self.value is None):
            rule = "takes no value" if monotone else "needs a value"
            raise UserError(f"claims: op {self.op!r} {rule}: {self.measure}")
        if self.op == "between" and not (isinstance(self.value, list) and len(self.value) == 2):
            raise UserError(f"claims: between needs value: [low, high], got {self.value!r}")
        if self.op.startswith("within") and not self.tolerance:
            raise UserError(f"claims: {self.op} needs a tolerance above 0: {self.measure}")
        return self

    @property
    def measures(self) -> list[str]:
        return [self.measure] if isinstance(self.measure, str) else self.measure

    def __str__(self) -> str:
        """The condition in words, as shown in the tolerance column."""
        what = ", ".join(self.measures)
        match self.op:
            case "between":
                return f"{what} in {show(self.value)}"
            case "within":
                return f"{what} = {show(self.value)} ± {show(self.tolerance)}"
            case "within_relative":
                return f"{what} = {show(self.value)} ± {show(100 * self.tolerance)} %"
            case "increasing" | "decreasing" | "order":
                slack = f" (up to {show(self.tolerance)})" if self.tolerance else ""
                return f"{what} {'decreasing' if self.op == 'decreasing' else 'increasing'}{slack}"
        return f"{what} {self.op} {show(self.value)}"


Checks = list[Check]


class Claim(Spec):
    """One claim of a paper; the keys are described at the top of this file."""

    id: str
    source: str
    says: str
    experiment: str | list[str]
    published: float | str | list[float] | None = None
    same_data: Checks | Literal["otherwise"] = []
    otherwise: Checks | Literal["same_data"] = []
    on_embedded: Checks | Literal["same_data", "otherwise"] = []
    only: dict[str, list[str]] = {}
    overrides: str = ""
    reason: str = ""

    @property
    def experiments(self) -> list[str]:
        return [self.experiment] if isinstance(self.experiment, str) else self.experiment

    def criterion(self, subject: str) -> tuple[str, Checks]:
        """The name of the criterion for this subject (paper, embedded, other), and its checks."""
        name = {"embedded": "on_embedded", "paper": "same_data"}.get(subject, "otherwise")
        if name == "same_data" and not self.same_data:
            name = "otherwise"
        checks = getattr(self, name)
        while isinstance(checks, str):
            checks = getattr(self, checks) if checks != name else []
        return name, checks


class ClaimsFile(Spec):
    """A claims.yaml."""

    paper_subject: str = ""
    reason: str = ""
    claims: list[Claim]

    @model_validator(mode="after")
    def _reason_of_all(self) -> Self:
        claims = [item.model_copy(update={"reason": item.reason or self.reason}) for item in self.claims]
        object.__setattr__(self, "claims", claims)
        return self


def read(path: Path) -> ClaimsFile:
    """Check a claims.yaml. Raises UserError naming the claim and key that is wrong."""
    try:
        content = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if isinstance(content, list):
        content = {"claims": content}
    if not isinstance(content, Mapping):
        raise UserError(f"{path} must be a mapping with the key `claims`, got {type(content).__name__}")
    file = ClaimsFile.parse(content, where=str(path))
    ids = [claim.id for claim in file.claims]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise UserError(f"{path}: ids must differ, given twice: {', '.join(twice)}")
    return file


def show(value: Any, most: int = 12) -> str:
    """A number, list or text for a table: four significant digits, long lists cut."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence | np.ndarray):
        items = [show(item) for item in value]
        if len(items) == 1:
            return items[0]
        shown = ", ".join(items[:most]) + (f", ... ({len(items)})" if len(items) > most else "")
        return f"[{shown}]" if items else ""
    number = float(value)
    return f"{number:.0f}" if number.is_integer() and abs(number) < 1e9 else f"{number:.4g}"
