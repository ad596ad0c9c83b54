"""A result small enough to check by eye, shared by the tests of all kinds of figure."""

import numpy as np

from repro.figures.draw import figure
from repro.figures.specs import Figure
from repro.results import NamedArray, Result

SEQUENCES = np.array([0.0, 100_000.0, 200_000.0])


def result(shift: float = 0.0) -> Result:
    """Every value is `shift` more than in `result()`."""
    head = np.arange(4.0)
    arrays = {
        "strength": NamedArray(head / 4 + shift, {"head": 4}),
        "only_accuracy": NamedArray(head**2 / 10 + shift, {"head": 4}),
        "removed_accuracy": NamedArray(np.ones(4) + shift, {"head": 4}),
        # layer 1 head h at checkpoint c is 10 h + c; layer 0 is -1
        "induction_strength": NamedArray(
            np.stack([np.full((3, 4), -1.0), 10 * head + np.arange(3)[:, None]], axis=1) + shift,
            {"checkpoint": [0, 100_000, 200_000], "layer": [0, 1], "head": 4},
        ),
        "wiring_accuracy": NamedArray(
            np.arange(12.0).reshape(2, 2, 3) + shift,
            {"mode": ["only", "remove"], "upper": 2, "lower": ["a", "b", "c"]},
        ),
    }
    for number, condition in enumerate(("none", "match")):
        arrays[f"{condition}.eval_sequences"] = NamedArray(SEQUENCES, {"point": 3}, "sequences")
        for evaluator in ("fsl_train", "fsl_val_rl"):
            values = np.array([1.0, 0.5, 0.25]) / (number + 1) + shift
            arrays[f"{condition}.eval_{evaluator}_loss"] = NamedArray(values, {"point": 3}, "nat")
    scalars = {"pt_patterns.accuracy": 0.99 + shift, "pt_values.accuracy": 0.7 + shift}
    return Result(scalars, arrays)


def documented(shift: float = 0.0) -> Result:
    """`result()` and what the examples of the documentation draw besides."""
    tokens, points = ["Mary", "and", "John"], np.linspace(0, 1, 6).reshape(1, 2, 3)
    names = {"head": ["9.9"], "name": ["IO", "S"], "prompt": 3}
    arrays = {
        "head.percent": NamedArray(np.arange(6.0).reshape(2, 3) - 3 + shift, {"layer": 2, "head": 3}),
        "direct.percent": NamedArray(
            np.arange(6.0).reshape(1, 2, 3) + shift, {"set": ["movers"], "layer": 2, "head": 3}
        ),
        "panel_0": NamedArray(
            np.tril(np.full((3, 3, 3), 0.5)) + shift,
            {"head": ["9.9", "9.6", "10.0"], "query_token": tokens, "key_token": tokens},
        ),
        "shown": NamedArray(
            np.array([0.5, -1.0, 0.0]) + shift / 1e3, {"position": ["0:Mary", "1: and", "2: John"]}
        ),
        **banded(shift),
        "attention": NamedArray(points + shift, names),
        "writing": NamedArray(2 * points + shift, names),
        **small_graph(shift),
    }
    known = result(shift)
    return Result(known.scalars, {**known.arrays, **arrays})


def banded(shift: float = 0.0) -> dict[str, NamedArray]:
    """Two curves of three layers, 0 1 2 and 10 11 12, with bands from 1 below to 2 above."""
    middle = np.array([[0.0, 1.0, 2.0], [10.0, 11.0, 12.0]]) + shift
    edges = {"mean": 0, "mean_low": -1, "mean_high": 2}
    axes = {"set": ["subject", "last"], "layer": [0, 1, 2]}
    return {name: NamedArray(middle + edge, dict(axes), "%") for name, edge in edges.items()}


def small_graph(shift: float = 0.0) -> dict[str, NamedArray]:
    """A circuit of three nodes in two classes, one of which acts on the other, and its completeness."""
    nodes = {"node": ["0.1@S2", "2.0@END", "2.3@END"]}
    effect = np.array([[-20.0, np.nan, np.nan], [np.nan, np.nan, -50.0], [np.nan, np.nan, 10.0]])
    return {
        "edge.percent": NamedArray(effect, {**nodes, "receiver": ["late", "early", "logits"]}, "%"),
        "node.class": NamedArray(np.array(["early", "late", "late"]), dict(nodes)),
        "node.layer": NamedArray(np.array([0, 2, 2]), dict(nodes)),
        "node.position": NamedArray(np.array(["S2", "END", "END"]), dict(nodes)),
        **{
            f"{kind}.{side}": NamedArray(np.arange(2.0) + i + shift, {"set": ["none", "late"]}, "logit")
            for kind in ("class", "random")
            for i, side in enumerate(("circuit", "model"))
        },
    }


def draw(mapping, *results, labels=(), notes=()):
    """The matplotlib figure of a spec given as a mapping."""
    return figure(Figure.choose(mapping, "figures.x"), list(results) or [result()], labels, notes)


def lines(place):
    """The lines that have a name in the legend, by that name."""
    return {line.get_label(): line for line in place.get_lines() if not line.get_label().startswith("_")}
