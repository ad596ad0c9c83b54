"""Wiring: of a circuit whose wires are known, of random weights pair by pair, and composition by hand."""

from __future__ import annotations

import numpy as np
import pytest

from repro.analyses import wiring
from repro.analyses.icl_measures import measure, training_sequences
from repro.analyses.specs import Wiring
from repro.analyses.wiring import composition, run
from repro.errors import UserError
from repro.interventions.specs import AblateHeads, Preserve
from repro.models.icl_init import init
from repro.models.specs import IclTransformer
from tests.analyses.small_runs import SEQUENCES, Run, circuit_run, features, random_run
from tests.analyses.splitting import assert_split_equals_whole
from tests.models.small_models import from_weights, named


@pytest.fixture(scope="module")
def result():
    return run({"": circuit_run()}, features(), None, None, Wiring())


def test_a_circuit_with_one_wire(result):
    accuracy = result.arrays["accuracy"]
    reader = accuracy.select(layer1_head="1:0")
    # 1:0 reads 0:0 through its pattern alone, and 0:1 not at all.
    np.testing.assert_array_equal(reader.select(preserved="pattern").values, 1)
    assert reader.select(mode="removed", preserved="v", layer0_head="0:1").values == 1
    assert reader.select(mode="kept", preserved="v", layer0_head="0:0").values == 1
    assert reader.select(mode="removed", preserved="v", layer0_head="0:0").values < 0.7
    assert reader.select(mode="kept", preserved="v", layer0_head="0:1").values < 0.7
    np.testing.assert_allclose(accuracy.select(layer1_head="1:1").values, 1 / 3)
    np.testing.assert_allclose(result.arrays["only_accuracy"].values, [1, 1 / 3])


def test_equals_manipulations_pair_by_pair():
    subject, sequences = random_run(2, heads=4), training_sequences(SEQUENCES, features(), 40)
    loss = run({"": subject}, features(), None, None, Wiring(sequences=40)).arrays["loss"]
    assert list(loss.axes) == ["mode", "preserved", "layer1_head", "layer0_head"]
    assert len(np.unique(loss.values.round(6))) == loss.values.size == 2 * 2 * 4 * 4
    cases = [
        ("removed", "pattern", 2, 1),
        ("removed", "v", 0, 3),
        ("kept", "pattern", 3, 0),
        ("kept", "v", 1, 2),
    ]
    for mode, site, reader, writer in cases:
        others = {f"1:{head}" for head in range(4) if head != reader}
        others |= {f"0:{head}" for head in range(4) if (head == writer) == (mode == "removed")}
        manipulations = [Preserve(sites=[site]), AblateHeads(heads=sorted(others))]
        slow = measure(subject, manipulations, sequences)(subject.model())
        at = {"mode": mode, "preserved": site, "layer1_head": f"1:{reader}", "layer0_head": f"0:{writer}"}
        assert loss.select(**at).values == pytest.approx(slow.mean_loss, rel=1e-5), at


def test_only_heads_have_nothing_of_layer_0_ablated():
    subject, sequences = random_run(3), training_sequences(SEQUENCES, features(), 40)
    found = run({"": subject}, features(), None, None, Wiring(sequences=40)).arrays["only_loss"].values
    for head in (0, 1):
        slow = measure(subject, [AblateHeads(heads=[f"1:{1 - head}"])], sequences)(subject.model())
        assert found[head] == pytest.approx(slow.mean_loss, rel=1e-5)


def test_composition_equals_products_of_matrices():
    model = random_run(4).model()
    scores = composition(model)
    for kind in range(3):
        for reader in range(2):
            for writer in range(2):
                # Rows of the transposed output projection, columns of the transposed joint projection.
                rows = np.asarray(model.blocks[0].attn.out.weight).T[4 * writer : 4 * writer + 4]
                joint = np.asarray(model.blocks[1].attn.qkv.weight).T
                begin = kind * 8 + 4 * reader
                columns = joint[:, begin : begin + 4]
                expected = np.linalg.norm(rows @ columns) / np.linalg.norm(rows) / np.linalg.norm(columns)
                assert scores[kind, reader, writer] == pytest.approx(expected, rel=1e-5)


def test_composition_of_heads_that_share_one_channel():
    """0:0 writes channel 3; keys of 1:1 read it, and nothing else reads what anybody writes."""
    like = init(IclTransformer(depth=2, heads=2, width=8), 4, 3, 0)
    weights = {name: np.zeros_like(value) for name, value in named(like).items()}
    out, joint = weights["blocks.0.attn.out.weight"], weights["blocks.1.attn.qkv.weight"]
    out[3, 0], out[5, 4] = 2, 1  # (channel, head * 4 + own)
    joint[:, 7] = 1
    joint[8 + 4 :, 7], joint[8 + 4, 3] = 0, -5
    joint[16:, 7] = 1
    scores = composition(from_weights(weights, "", like))
    expected = np.zeros((3, 2, 2))
    expected[1, 1, 0] = 1
    np.testing.assert_allclose(scores, expected, atol=1e-7)


def test_scales_of_weights_do_not_matter():
    model = random_run(5).model()
    weights = named(model)
    for name in ("blocks.0.attn.out.weight", "blocks.1.attn.qkv.weight"):
        weights[name] = 3 * weights[name]
    np.testing.assert_allclose(composition(from_weights(weights, "", model)), composition(model), rtol=1e-5)


def test_three_layers_are_refused():
    spec = IclTransformer(depth=3, heads=2, width=8)
    with pytest.raises(UserError, match="two layers"):
        run({"": Run({0: init(spec, 4, 3, 0)}, spec=spec)}, features(), None, None, Wiring())


def test_split_over_ablations(tmp_path):
    asked, subject = Wiring(sequences=40), random_run(2, heads=3)
    items = asked.items(lambda _: {"model": subject.spec})
    assert items == 2 * (3 + 2 * 9)
    assert_split_equals_whole(wiring, {"": subject}, features(), asked, items, tmp_path, (2, 4))
