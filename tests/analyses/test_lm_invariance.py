"""Every measurement gives the same per prompt whatever the batch size, the padding side and the order."""

import numpy as np
import pytest
import torch
from analyses.lm_cases import measure, padded_left, pairs
from models.tiny_models import tiny

from repro.analyses import lm_measure_specs as specs

SPECS = [
    specs.LogitDifference(heads=["0.1", "2.3"]),
    specs.LogitDifference(which="corrupt", query="S2", keys=["S1"]),
    specs.ActivationPatching(sites=["z", "v", "mlp_out"]),
    specs.ActivationPatching(
        sites=["q", "resid_pre", "pattern"], direction="denoising", positions=["S2", "END"]
    ),
    specs.LogitAttribution(),
    specs.AttentionWriting(heads=["1.2", "2.0"]),
    specs.Knockouts(
        per_template=None,
        positions=["S2", "END"],
        sets={"some": ["1.2@END", "0.*@S2", "mlp1"], "circuit": {"nodes": ["2.1"], "outside": True}},
        direct_after=["some"],
    ),
    specs.AttentionPatterns(queries=["END", "S2"]),
    specs.CopyScores(),
]  # fmt: skip


def close(one, other, flip=False):
    assert one.arrays.keys() == other.arrays.keys()
    for name, array in one.arrays.items():
        values = other.arrays[name].values
        if flip and "prompt" in array.axes:
            values = values[..., ::-1]
        np.testing.assert_allclose(values, array.values, rtol=1e-6, atol=1e-9, err_msg=name)
    for name, value in one.scalars.items():
        np.testing.assert_allclose(other.scalars[name], value, rtol=1e-6, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_batch_size_padding_side_and_order_do_not_matter(spec):
    model, data = tiny("gpt2", dtype=torch.float64), pairs()
    expected = measure(model, data, spec)
    close(expected, measure(model, data, spec.model_copy(update={"batch": 2})))
    close(expected, measure(model, padded_left(data), spec))
    close(expected, measure(model, data.rows([4, 3, 2, 1, 0]), spec), flip=True)
