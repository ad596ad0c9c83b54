"""Small formulas over a Result, as they stand in `claims.yaml`: read by rule, never executed as Python.

final_loss                          a scalar; dots are part of names: match.final_loss
strength[-1, 1]                     of an array, one entry an axis in order: a label (text or number), else a
                                    position; `:` takes the whole axis, and so do axes left out at the end
value('a-b')                        a scalar or array whose name is no plain word
a - b, a / b, a < b, a and b        arithmetic and comparisons, element by element
max(a, b), count(strength[-1, 1] > 0.4), spearman(strength[-1, 1], accuracy)       the functions below
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from repro.errors import UserError
from repro.results import NamedArray, Result

Value = float | np.ndarray


class Missing(Exception):
    """The Result has no scalar or array of this name."""


def _over_all(reduce: Callable[[np.ndarray], Any]) -> Callable[..., float]:
    # min(a, b) of two numbers and min(vector) are the same question.
    return lambda *parts: float(reduce(np.concatenate([np.ravel(part) for part in parts])))


def _ranks(values: Value) -> np.ndarray:
    flat = np.ravel(values)
    unique, inverse, counts = np.unique(flat, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + ends + 1) / 2)[inverse]  # ties share the mean of their ranks


def pearson(first: Value, second: Value) -> float:
    """Correlation of two vectors of one length; NaN if one of them is constant."""
    a, b = np.ravel(first) - np.mean(first), np.ravel(second) - np.mean(second)
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else float("nan")


def spearman(first: Value, second: Value) -> float:
    """Rank correlation of two vectors of one length."""
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return float("nan")
    return pearson(_ranks(first), _ranks(second))


def first_below(steps: Value, values: Value, level: Value) -> float:
    """The first of `steps` at which `values` is below `level`; NaN if never."""
    below = np.flatnonzero(np.ravel(values) < level)
    return float(np.ravel(steps)[below[0]]) if below.size else float("nan")


def at(steps: Value, values: Value, step: Value) -> float:
    """`values` at `step`, straight lines between the measured points; NaN outside of them."""
    x, y = np.ravel(steps), np.ravel(values)
    return float(np.interp(float(step), x, y, left=np.nan, right=np.nan))


def between(steps: Value, values: Value, low: Value, high: Value) -> np.ndarray:
    """Those `values` whose step lies in [low, high]."""
    x = np.ravel(steps)
    return np.ravel(values)[(x >= low) & (x <= high)]


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "min": _over_all(np.min),
    "max": _over_all(np.max),
    "mean": _over_all(np.mean),
    "median": _over_all(np.median),
    "sum": _over_all(np.sum),
    "std": _over_all(np.std),
    "count": _over_all(np.count_nonzero),
    "argmax": _over_all(np.argmax),
    "argmin": _over_all(np.argmin),
    "len": lambda values: float(np.size(values)),
    "abs": np.abs,
    "log": np.log,
    "exp": np.exp,
    "sqrt": np.sqrt,
    "sort": lambda values: np.sort(np.ravel(values)),
    "difference": lambda values: np.diff(np.ravel(values)),
    "vector": lambda *parts: np.concatenate([np.ravel(part) for part in parts]),
    "pearson": pearson,
    "spearman": spearman,
    "first_below": first_below,
    "at": at,
    "between": between,
}
_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: np.divide,
    ast.Pow: np.power, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.And: np.logical_and, ast.Or: np.logical_or,
}  # fmt: skip
_UNARY: dict[type, Callable[[Any], Any]] = {ast.USub: operator.neg, ast.Not: np.logical_not}


def evaluate(formula: str, result: Result) -> Value:
    """The number or array the formula stands for.

    Raises Missing if the Result lacks a name, UserError if the formula is wrong.
    """
    try:
        with np.errstate(all="ignore"):  # a division by zero gives inf or NaN, and no claim holds for NaN
            value = np.asarray(_walk(_parse(formula), result), dtype=float)
    except (ValueError, TypeError, IndexError) as error:
        raise UserError(f"claims: {formula!r}: {error}") from error
    return float(value) if value.ndim == 0 else value


def check(formula: str) -> None:
    """Raise UserError unless the formula is made of the pieces described above."""
    for node in ast.walk(_parse(formula)):
        if isinstance(node, ast.Call):
            if not isinstance(node.func, ast.Name) or node.func.id not in {*FUNCTIONS, "value"}:
                known = ", ".join(sorted([*FUNCTIONS, "value"]))
                called = ast.unparse(node.func)
                raise UserError(f"claims: {formula!r}: {called!r} is no function. Functions: {known}")
        elif not isinstance(node, _PIECES):
            raise UserError(f"claims: {formula!r}: {type(node).__name__} is not allowed in a measure")


_PIECES = (
    ast.Expression, ast.Constant, ast.Name, ast.Attribute, ast.Subscript, ast.Slice, ast.Tuple, ast.BinOp,
    ast.UnaryOp, ast.Compare, ast.BoolOp, ast.Load, *_BINARY, *_UNARY,
)  # fmt: skip


def _parse(formula: str) -> ast.AST:
    try:
        return ast.parse(formula.strip(), mode="eval")
    except SyntaxError as error:
        raise UserError(f"claims: {formula!r} is no formula: {error.msg}") from None


def _walk(node: ast.AST, result: Result) -> Any:
    match node:
        case ast.Expression(body=body):
            return _walk(body, result)
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.Name() | ast.Attribute():
            return _named(_dotted(node), result)
        case ast.Subscript(value=value, slice=entries):
            return _entry(_dotted(value), entries, result)
        case ast.Call(func=ast.Name(id="value"), args=[ast.Constant(value=str() as name)]):
            return _named(name, result)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            return FUNCTIONS[name](*[_walk(argument, result) for argument in arguments])
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            return _UNARY[type(op)](_walk(operand, result))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_walk(left, result), _walk(right, result))
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _BINARY:
            return _BINARY[type(op)](_walk(left, result), _walk(right, result))
        case ast.BoolOp(op=op, values=[first, *others]):
            value = _walk(first, result)
            for other in others:
                value = _BINARY[type(op)](value, _walk(other, result))
            return value
    raise UserError(f"claims: {ast.unparse(node)!r} is not allowed in a measure")


def _dotted(node: ast.AST) -> str:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attribute):
            return f"{_dotted(value)}.{attribute}"
        case ast.Call(func=ast.Name(id="value"), args=[ast.Constant(value=str() as name)]):
            return name
    raise UserError(f"claims: {ast.unparse(node)!r} is no name of a scalar or array")


def _named(name: str, result: Result) -> Any:
    if name in result.scalars:
        return result.scalars[name]
    if name in result.arrays:
        return result.arrays[name].values
    raise Missing(name)


def _entry(name: str, entries: ast.AST, result: Result) -> Any:
    if name not in result.arrays:
        raise Missing(name)
    array = result.arrays[name]
    wanted = entries.elts if isinstance(entries, ast.Tuple) else [entries]
    if len(wanted) > len(array.axes):
        raise UserError(f"claims: {name} has the axes {', '.join(array.axes)}: too many entries in [ ]")
    index = tuple(_place(entry, axis, array) for entry, axis in zip(wanted, array.axes, strict=False))
    return array.values[index]


def _place(entry: Any, axis: str, array: NamedArray) -> Any:
    if isinstance(entry, ast.Slice):
        bounds = (entry.lower, entry.upper, entry.step)
        return slice(*[None if bound is None else int(ast.literal_eval(bound)) for bound in bounds])
    label, known = ast.literal_eval(entry), array.labels(axis)
    if label in known:
        return known.index(label)
    if isinstance(label, int) and -len(known) <= label < len(known):
        return label
    shown = ", ".join(str(item) for item in known[:12]) + (" ..." if len(known) > 12 else "")
    raise UserError(f"claims: axis {axis!r} has no entry {label!r}. Labels: {shown}")
