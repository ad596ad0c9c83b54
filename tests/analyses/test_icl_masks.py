"""Masks over heads, against the same ablations as manipulations, one compiled pass each."""

from __future__ import annotations

import numpy as np
import pytest

from repro.analyses import icl_measures
from repro.analyses.icl_masks import MaskedMeasure, mask
from repro.analyses.icl_measures import measure, training_sequences
from repro.errors import UserError
from repro.interventions.specs import (
    AblateHeads,
    InductionHeads,
    PerfectCopy,
    PerfectPreviousTokenInput,
    Preserve,
    PreviousTokenHeads,
)
from tests.analyses.small_runs import COUNT, SEQUENCES, circuit, features, random_run

BESIDES = [
    [],
    [Preserve(sites=["pattern"])],
    [Preserve(sites=["v"])],
    [InductionHeads(heads=["1:0", "1:1"])],
    [InductionHeads(heads=["1:1"]), Preserve(sites=["k", "q"]), PreviousTokenHeads(heads=["0:0"])],
    [PerfectCopy(head="1:1")],
]


@pytest.fixture(scope="module")
def sequences():
    return training_sequences(SEQUENCES, features(), 40)


@pytest.mark.parametrize("besides", BESIDES, ids=lambda some: "+".join(one.kind for one in some) or "none")
def test_masks_equal_ablations(besides, sequences):
    run = random_run()
    masks = np.array([[[0, 1], [1, 1]], [[1, 1], [1, 0]], [[1, 0], [0, 1]]])
    measured = MaskedMeasure(sequences, besides)(run.model(), masks)
    losses = set()
    for one, got in zip(masks, measured, strict=True):
        ablated = [f"{layer}:{head}" for layer, head in np.argwhere(one == 0)]
        expected = measure(run, [*besides, AblateHeads(heads=ablated)], sequences)(run.model())
        np.testing.assert_allclose(got.loss, expected.loss, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(got.predicted, expected.predicted)
        np.testing.assert_array_equal(got.right, expected.right)
        losses.add(round(expected.mean_loss, 4))
    # Perfect copying decides the logits, whatever the heads write; else masks make a difference.
    assert len(losses) == (1 if PerfectCopy(head="1:1") in besides else len(masks))


def test_the_size_of_batches_does_not_matter(monkeypatch):
    run, sequences = random_run(1), training_sequences(SEQUENCES, features())
    masks = np.stack([mask(run.model(), 1, active=[0]), mask(run.model(), 0, ablated=[1])])
    whole = MaskedMeasure(sequences)(run.model(), masks)
    monkeypatch.setattr(icl_measures, "BATCH", 25)
    parts = MaskedMeasure(sequences)(run.model(), masks)
    for got, expected in zip(parts, whole, strict=True):
        assert len(expected.loss) == COUNT
        np.testing.assert_allclose(got.loss, expected.loss, atol=1e-5)
        np.testing.assert_array_equal(got.predicted, expected.predicted)


def test_one_measure_serves_several_models(sequences):
    take = MaskedMeasure(sequences)
    everything = np.ones((1, 2, 2))
    assert take(circuit(), everything)[0].accuracy == 1
    # Without what layer 0 writes, both labels of the context look alike.
    assert take(circuit(connected=False), everything)[0].accuracy < 0.7


def test_masks_by_name():
    model = circuit()
    np.testing.assert_array_equal(mask(model, 1, active=[1]), [[1, 1], [0, 1]])
    np.testing.assert_array_equal(mask(model, 0, ablated=[1]), [[1, 0], [1, 1]])
    np.testing.assert_array_equal(mask(model, 1, active=[]), [[1, 1], [0, 0]])


def test_what_masks_cannot_do_is_refused(sequences):
    with pytest.raises(UserError, match="perfect_previous_token_input"):
        MaskedMeasure(sequences, [PerfectPreviousTokenInput()])
    with pytest.raises(ValueError, match="masks"):
        MaskedMeasure(sequences)(circuit(), np.ones((2, 2)))
