"""Prefixes computed once give what the definition gives of every sequence."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from repro.analyses import icl_prefixes
from repro.analyses.icl_measures import Measure, Measured, SequenceSet, SharedMeasure
from repro.analyses.icl_prefixes import ancestors, boxes, tree
from repro.interventions.icl_manipulations import untouched
from repro.models.icl_init import init
from repro.models.specs import IclTransformer
from tests.models.small_models import perturbed

CLASSES, LABELS, DIM = 5, 3, 6
SHAPES = [
    dict(depth=1),
    dict(depth=2),
    dict(depth=3, heads=4, mlp_ratio=2.0),
    dict(depth=2, positions="sinusoidal"),
    dict(depth=2, positions="learned", mlp_ratio=1.0),
]


def everything() -> SequenceSet:
    """Every sequence of two classes and two different labels."""
    rows = []
    for correct in (0, 1):
        for first, second in ((0, 1), (1, 0), (0, 2), (2, 0), (1, 2)):  # an irregular choice of labels
            for a in range(CLASSES):
                for b in range(CLASSES):
                    if a != b:
                        query, label = ((a, first), (b, second))[correct]
                        rows.append(((a, b, query), (first, second, label), correct))
    items, labels, correct = (np.array(column, np.int32) for column in zip(*rows, strict=True))
    features = np.random.default_rng(1).standard_normal((CLASSES, DIM)).astype(np.float32)
    return SequenceSet(items, labels, correct, features)


def subset(sequences: SequenceSet, kept: np.ndarray) -> SequenceSet:
    return SequenceSet(*(array[kept] for array in sequences[:3]), sequences.rows)


def small(dtype: Any = np.float32, **shape: Any) -> Any:
    spec = IclTransformer(**{"heads": 2, "width": 8, **shape})
    return perturbed(init(spec, DIM, LABELS, 0), 3, dtype)


def agree(found: Measured, expected: Measured, rtol: float, atol: float) -> None:
    for name in ("loss", "induction", "previous_token"):
        a, b = getattr(found, name), getattr(expected, name)
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=name)
    np.testing.assert_array_equal(found.predicted, expected.predicted)
    np.testing.assert_array_equal(found.right, expected.right)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_definition(shape: dict[str, Any]) -> None:
    sequences, model = everything(), small(**shape)
    agree(SharedMeasure(sequences)(model), Measure(untouched, sequences, True)(model), 1e-5, 1e-6)


def test_equals_the_definition_to_the_last_digits_in_double_precision() -> None:
    with jax.enable_x64(True):
        model = small(np.float64, depth=2, mlp_ratio=1.0)
        indices, rows = everything()[:3], everything().rows
        sequences = SequenceSet(*indices, rows.astype(np.float64))
        expected = Measure(untouched, sequences, True)(model)
        assert expected.loss.dtype == np.float64
        agree(SharedMeasure(sequences)(model), expected, 1e-12, 1e-13)


@pytest.mark.parametrize("count, leaves", [(1, 256), (90, 256), (150, 4)])
def test_irregular_subsets_in_any_order_and_with_repeats(
    count: int, leaves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(icl_prefixes, "LEAVES", leaves)  # with few in a chunk, there are several boxes
    sequences, model = everything(), small(depth=2)
    kept = np.random.default_rng(count).integers(0, len(sequences), count)
    some = subset(sequences, kept)
    assert (len(boxes(tree(some))[0]) > 1) == (leaves == 4)
    agree(SharedMeasure(some)(model), Measure(untouched, some, True)(model), 1e-5, 1e-6)


def test_counts_of_prefixes_by_brute_force() -> None:
    sequences = subset(everything(), np.random.default_rng(0).permutation(200)[:77])
    grown = tree(sequences)
    tokens = [(a, x, b, y, q) for (a, b, q), (x, y, _) in zip(sequences.items, sequences.labels, strict=True)]
    for length, level in enumerate(grown.levels, start=1):
        prefixes = {one[:length] for one in tokens}
        assert len(level.token) == len(prefixes)
        assert sorted(level.count) == sorted(sum(one[:length] == p for one in tokens) for p in prefixes)


def test_each_sequence_finds_its_own_place_in_the_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(icl_prefixes, "LEAVES", 4)
    sequences = subset(everything(), np.random.default_rng(5).permutation(200)[:120])
    grown = tree(sequences)
    made, place = boxes(grown)
    flat = np.concatenate([np.broadcast_to(box.query, box.target.shape).ravel() for box in made])
    np.testing.assert_array_equal(flat[place], sequences.items[:, -1])
    target = np.concatenate([box.target.ravel() for box in made])
    np.testing.assert_array_equal(target[place], sequences.labels[:, -1])
    sign = np.concatenate([box.sign.ravel() for box in made])
    np.testing.assert_array_equal(sign[place], 1 - 2 * sequences.correct)
    assert np.abs(sign).sum() == len(sequences)  # what is filled up counts for nothing
    above = ancestors(grown.levels, grown.leaf)
    np.testing.assert_array_equal(grown.levels[2].token[above[2]], sequences.items[:, 1])
