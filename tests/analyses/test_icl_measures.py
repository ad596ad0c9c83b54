"""Enumerated sequences, head scores and their means."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from repro.analyses import icl_measures
from repro.analyses.icl_measures import (
    Measured,
    batches,
    condition,
    head_index,
    induction_strength,
    layer_heads,
    layer_index,
    measure,
    mended,
    parse,
    previous_token_score,
    training_sequences,
)
from repro.data.features import Features
from repro.data.specs import Sequences
from repro.errors import UserError
from repro.interventions.specs import AblateHeads, InductionHeads
from repro.training.schedule import nearest
from tests.analyses.small_runs import CLASSES, COUNT, SEQUENCES, circuit, circuit_run, features, random_run


@pytest.fixture(scope="module")
def sequences():
    return training_sequences(SEQUENCES, features())


def test_there_are_as_many_sequences_as_published():
    values = np.random.default_rng(0).standard_normal((150, 5, 2)).astype(np.float32)
    spec = Sequences.parse({"class_split": [50, "rest", 100], "label_pair_split": [8, 2, 0]}, "sequences")
    made = training_sequences(spec, Features(values, "made up", "0" * 64, "gaussian"))
    assert len(made) == 50 * 49 * 16 * 2 == 78_400
    np.testing.assert_array_equal(made.rows, values[:50, 0])
    # The published label pairs are (1, 2), (2, 3), ... and then the same reversed.
    np.testing.assert_array_equal(
        made.labels[[0, 2449, 2450, 8 * 2450]], [[1, 2, 1]] * 2 + [[2, 3, 2], [2, 1, 2]]
    )
    np.testing.assert_array_equal(
        made.items[[0, 1, 48, 49, 2450]], [[0, 1, 0], [0, 2, 0], [0, 49, 0], [1, 0, 1], [0, 1, 0]]
    )
    np.testing.assert_array_equal(made.items[39_200:39_202], [[0, 1, 1], [0, 2, 2]])
    np.testing.assert_array_equal(made.labels[39_200], [1, 2, 2])


def test_published_order_by_hand(sequences):
    classes = [[a, b] for a in range(4) for b in range(4) if a != b]
    pairs = [(0, 1), (0, 2), (1, 2), (1, 0), (2, 0), (2, 1)]
    expected = [
        ([*pair, pair[query]], [*labels, labels[query]], query)
        for query in (0, 1)
        for labels in pairs
        for pair in classes
    ]
    assert len(sequences) == COUNT == len(expected)
    for column, wanted in zip(sequences[:3], zip(*expected, strict=True), strict=True):
        np.testing.assert_array_equal(column, wanted)


def test_the_query_has_the_label_of_its_class_and_rows_are_the_training_exemplars(sequences):
    everyone = np.arange(len(sequences))
    np.testing.assert_array_equal(sequences.items[:, 2], sequences.items[everyone, sequences.correct])
    np.testing.assert_array_equal(sequences.labels[:, 2], sequences.labels[everyone, sequences.correct])
    np.testing.assert_array_equal(sequences.rows, np.eye(CLASSES))


def test_a_subset_is_spread_over_all():
    some = training_sequences(SEQUENCES, features(), 10)
    every = training_sequences(SEQUENCES, features())
    assert len(some) == 10
    np.testing.assert_array_equal(some.items[[0, -1]], every.items[[0, -1]])
    assert set(some.correct) == {0, 1}
    assert len(training_sequences(SEQUENCES, features(), 10_000)) == COUNT


def test_longer_contexts_and_class_labels_are_refused():
    for change in ({"context": 4}, {"labels": 0}):
        with pytest.raises(UserError, match="context 2 and labels"):
            training_sequences(SEQUENCES.model_copy(update=change), features())


def test_scores_of_patterns_made_by_hand():
    """Two layers, one sequence, one head, 5 tokens: weights that can be told apart."""
    patterns = np.zeros((2, 2, 1, 5, 5), np.float32)
    patterns[0, :, 0, 4] = [0.05, 0.5, 0.1, 0.2, 0.15]
    patterns[1, :, 0, 4] = [0.0, 0.0, 0.0, 1.0, 0.0]
    patterns[0, :, 0, 1, 0], patterns[0, :, 0, 3, 2], patterns[0, :, 0, 2, 1] = 0.6, 0.2, 0.9
    strength = induction_strength(jnp.asarray(patterns), jnp.array([0, 1]))
    np.testing.assert_allclose(strength, [[[0.3, -0.3]], [[-1.0, 1.0]]], atol=1e-6)
    np.testing.assert_allclose(
        previous_token_score(jnp.asarray(patterns)), [[[0.4, 0.4]], [[0, 0]]], atol=1e-6
    )


def test_a_circuit_made_by_hand_is_measured_as_what_it_is(sequences):
    measured = measure(circuit_run(), None, sequences, scores=True)(circuit())
    assert measured.accuracy == 1
    assert measured.mean_loss < 0.1
    np.testing.assert_array_equal(measured.predicted, sequences.labels[:, 2])
    assert measured.induction is not None and measured.previous_token is not None
    np.testing.assert_allclose(measured.induction[1], [1, 0], atol=1e-5)
    # An even head sees two tokens from the first label and four from the second: (1/2 + 1/4) / 2.
    np.testing.assert_allclose(measured.previous_token[0], [1, 0.375], atol=1e-5)


def test_manipulations_of_the_training_are_used_unless_others_are_given(sequences):
    run = circuit_run()
    run.manipulations = (AblateHeads(heads=["1:0"]),)
    assert measure(run, None, sequences)(run.model()).accuracy == pytest.approx(1 / 3)
    assert measure(run, [], sequences)(run.model()).accuracy == 1


def test_the_size_of_batches_does_not_matter(sequences, monkeypatch):
    run = random_run()
    found = []
    for size in (1024, 7, COUNT):
        monkeypatch.setattr(icl_measures, "BATCH", size)
        found.append(measure(run, [], sequences, scores=True)(run.model()))
    for other in found[1:]:
        for got, expected in zip(other, found[0], strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-5)
    assert 0 < found[0].accuracy < 1


def test_batches_are_of_one_size_and_count_every_sequence_once(sequences, monkeypatch):
    monkeypatch.setattr(icl_measures, "BATCH", 100)
    parts = list(batches(sequences))
    assert [count for count, _ in parts] == [100, COUNT - 100]
    assert {array.shape[0] for _, arrays in parts for array in arrays} == {100}
    items = np.concatenate([arrays[0][:count] for count, arrays in parts])
    np.testing.assert_array_equal(items, sequences.items)


def test_nearest_checkpoints_of_a_grid():
    assert nearest([0, 10, 20, 90, 100], 3) == [0, 20, 100]
    assert nearest([100, 0, 49], 3) == [0, 49, 100]
    assert nearest([0, 100], 50) == [0, 100]
    assert nearest([7], 5) == [7]


def test_mended_mistakes():
    cases = [[1, 0, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0], [0, 1, 1, 1]]
    measured = [Measured(np.zeros(4), np.array(right, float), np.zeros(4, int)) for right in cases]
    np.testing.assert_allclose(mended(measured, 0), [np.nan, 2 / 3, 0, 1])
    perfect = [Measured(np.zeros(2), np.ones(2), np.zeros(2, int))] * 2
    assert np.isnan(mended(perfect, 1)).all()


def test_names_of_heads_layers_and_conditions():
    assert layer_heads(3, 1) == ["1:0", "1:1", "1:2"]
    assert layer_heads(3, 0, but=[1]) == ["0:0", "0:2"]
    assert head_index("1:2", 1, 3, "x") == 2
    assert (layer_index(-1, 2), layer_index(0, 2)) == (1, 0)
    assert parse([{"kind": "induction_heads", "heads": ["1:0"]}], "x") == [InductionHeads(heads=["1:0"])]
    for wrong in ("0:2", "1:3"):
        with pytest.raises(UserError, match="1:0, 1:1, 1:2"):
            head_index(wrong, 1, 3, "x")
    with pytest.raises(UserError, match="-2 to 1"):
        layer_index(2, 2)
    with pytest.raises(UserError, match="'a', 'b'"):
        condition({"a": circuit_run(), "b": circuit_run()}, "c")
