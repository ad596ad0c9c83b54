"""Formulas of claims.yaml, against numbers worked out by hand."""

import math

import numpy as np
import pytest

from repro.errors import UserError
from repro.expressions import Missing, check, evaluate
from repro.results import NamedArray, Result

RESULT = Result(
    scalars={"a": 6.0, "b": 2.0, "match.loss": 0.5, "odd-name": 3.0, "never": math.nan},
    arrays={
        "strength": NamedArray(np.array([[0.1, 0.2], [0.5, 0.9]]), {"checkpoint": [100, 200], "head": 2}),
        "loss": NamedArray(np.array([1.0, 0.8, 0.2, 0.1]), {"point": 4}),
        "steps": NamedArray(np.array([0, 10, 20, 30]), {"point": 4}),
        "set": NamedArray(np.array([1.0, 2.0]), {"set": ["subject", "last"]}),
    },
)


@pytest.mark.parametrize(
    ("formula", "value"),
    [
        ("a - b", 4.0),
        ("a / b + 2 * -b", -1.0),
        ("b ** 3", 8.0),
        ("match.loss", 0.5),
        ("value('odd-name') + 1", 4.0),
        ("max(a, b, match.loss)", 6.0),
        ("set['last']", 2.0),
        ("strength[200, 1]", 0.9),
        ("strength[-1, 0]", 0.5),
        ("count(strength[-1] > 0.4)", 2.0),
        ("count(strength > 0.4 and strength < 0.6)", 1.0),
        ("sum(strength[:, 1])", 1.1),
        ("abs(b - a)", 4.0),
        ("first_below(steps, loss, 0.5)", 20.0),
        ("at(steps, loss, 5)", 0.9),
        ("mean(between(steps, loss, 10, 20))", 0.5),
        ("spearman(steps, loss)", -1.0),
        ("pearson(steps, steps * 2 + 1)", 1.0),
        ("argmin(loss)", 3.0),
        ("max(difference(loss))", -0.1),
    ],
)
def test_values(formula, value):
    check(formula)
    assert evaluate(formula, RESULT) == pytest.approx(value)


def test_ties_share_their_rank():
    # ranks (1.5, 1.5, 3) against (1, 2, 3): covariance 1.5, variances 1.5 and 2
    assert evaluate("spearman(vector(1, 1, 2), vector(1, 2, 3))", RESULT) == pytest.approx(1.5 / math.sqrt(3))


@pytest.mark.parametrize(
    "formula", ["never", "first_below(steps, loss, 0)", "at(steps, loss, 31)", "0 * a / 0"]
)
def test_nothing_measured_is_nan(formula):
    assert math.isnan(evaluate(formula, RESULT))


def test_missing_names():
    with pytest.raises(Missing, match="nothing.here"):
        evaluate("a + nothing.here", RESULT)
    with pytest.raises(Missing, match="q"):
        evaluate("q[0]", RESULT)


@pytest.mark.parametrize(
    "formula",
    [
        "__import__('os').system('true')",
        "a.__class__()",
        "open('x')",
        "[x for x in loss]",
        "lambda: 1",
        "max(key=a)",
        "f'{a}'",
        "a if b else 1",
        "a +",
    ],
)
def test_programs_are_refused(formula):
    with pytest.raises(UserError, match="claims"):
        check(formula)
    with pytest.raises((UserError, Missing)):
        evaluate(formula, RESULT)


def test_a_wrong_entry_names_the_labels():
    with pytest.raises(UserError, match="Labels: subject, last"):
        evaluate("set['first']", RESULT)
    with pytest.raises(UserError, match="too many entries"):
        evaluate("loss[0, 0]", RESULT)
