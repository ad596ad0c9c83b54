"""Settings by name at checkpoints, in a circuit that is connected between two of them."""

from __future__ import annotations

import numpy as np
import pytest

from repro.analyses import circuit_settings
from repro.analyses.circuit_settings import head_groups, run
from repro.analyses.specs import CircuitSettings
from repro.errors import UserError
from repro.interventions.specs import AblateHeads
from repro.training.specs import Training
from tests.analyses.small_runs import Run, circuit, features
from tests.analyses.splitting import assert_split_equals_whole

SETTINGS = {
    "full": [],
    "trained": None,
    "pt_patterns": [
        {"kind": "ablate_heads", "heads": "previous_token_heads"},
        {"kind": "preserve", "sites": ["pattern"]},
    ],
    "pt_values": [
        {"kind": "ablate_heads", "heads": ["previous_token_heads"]},
        {"kind": "preserve", "sites": ["v"]},
    ],
    "rest": [{"kind": "ablate_heads", "heads": ["other_heads", "1:1"]}],
    "nothing": [{"kind": "ablate_heads", "heads": "1:*"}],
}


def spec(**changes) -> CircuitSettings:
    return CircuitSettings.parse({"settings": SETTINGS, **changes}, "analysis")


def circuit_run():
    """Not connected at 0 sequences, connected at 320; evaluated at 0, 160 and 320."""
    history = {"points": np.array([0, 5, 10]), "eval_fsl_train_loss": np.array([1.0, 0.5, 0.25])}
    models = {0: circuit(connected=False), 320: circuit()}
    return Run(models, history, (AblateHeads(heads=["1:0"]),))


@pytest.fixture(scope="module")
def along():
    wanted = spec(checkpoints=2, baseline="fsl_train", report_at=[80, 1000])
    return run({"": circuit_run()}, features(), None, None, wanted)


def test_what_ablations_of_a_known_circuit_do():
    result = run({"": circuit_run()}, features(), None, None, spec())
    accuracy = {name: result.scalars[f"{name}.accuracy"] for name in SETTINGS}
    # The previous-token head matters through the pattern of 1:0, and for nothing else.
    assert accuracy["full"] == accuracy["pt_patterns"] == accuracy["rest"] == 1
    assert accuracy["pt_values"] < 0.7
    assert accuracy["nothing"] == accuracy["trained"] == pytest.approx(1 / 3)
    assert result.arrays["loss"].axes == {"setting": list(SETTINGS), "checkpoint": [320]}
    assert "loss_increase" not in result.arrays
    assert result.notes["previous_token_heads"] == "0:0" and result.notes["other_heads"] == "0:1"
    assert result.scalars["number_of_previous_token_heads"] == 1
    np.testing.assert_allclose(result.arrays["previous_token"].values, [1, 0.375], atol=1e-5)


def test_along_checkpoints(along):
    accuracy = along.arrays["accuracy"]
    assert accuracy.axes == {"setting": list(SETTINGS), "checkpoint": [0, 320]}
    np.testing.assert_array_equal(along.arrays["checkpoint_sequences"].values, [0, 320])
    before, after = accuracy.select(setting="full").values
    assert before < 0.7 and after == 1
    np.testing.assert_allclose(accuracy.select(setting="nothing").values, [1 / 3, 1 / 3])


def test_the_loss_of_training_is_subtracted(along):
    np.testing.assert_allclose(along.arrays["baseline_loss"].values, [1.0, 0.25])
    increase, loss = along.arrays["loss_increase"].values, along.arrays["loss"].values
    np.testing.assert_allclose(increase, loss - [1.0, 0.25])
    assert along.scalars["full.loss_increase"] == increase[0, 1]


def test_scalars_between_checkpoints_are_interpolated_and_nan_beyond(along):
    loss = along.arrays["loss"].select(setting="full").values
    assert along.scalars["full.loss_at_80"] == pytest.approx(0.75 * loss[0] + 0.25 * loss[1])
    assert along.scalars["full.loss"] == loss[1]
    assert np.isnan(along.scalars["full.loss_at_1000"])


def test_the_baseline_is_interpolated_between_evaluations():
    models = {80: circuit(), 320: circuit()}
    history = {"points": np.array([0, 5, 10]), "eval_fsl_train_loss": np.array([1.0, 0.5, 0.25])}
    wanted = spec(checkpoints=2, baseline="fsl_train", settings={"full": []}, sequences=10)
    result = run({"": Run(models, history)}, features(), None, None, wanted)
    np.testing.assert_allclose(result.arrays["baseline_loss"].values, [0.75, 0.25])


def test_groups_of_heads_by_hand():
    groups = head_groups(np.array([0.9, 0.4, 0.41]), 0.4, 2)
    assert groups == {
        "previous_token_heads": ["0:0", "0:2"],
        "other_heads": ["0:1"],
        "0:*": ["0:0", "0:1", "0:2"],
        "1:*": ["1:0", "1:1", "1:2"],
    }


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"settings": {}}, "settings"),
        ({"settings": {"a b": []}}, "settings"),
        ({"settings": {"x": [{"kind": "ablate_head", "heads": []}]}}, r"settings.x.0.*'ablate_heads'"),
        ({"settings": {"x": [{"kind": "ablate_heads", "heads": ["previous_heads"]}]}}, r"settings.x.0.heads"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_trained(wrong, says):
    with pytest.raises(UserError, match=says):
        spec(**wrong)


def test_an_unknown_baseline_is_refused():
    with pytest.raises(UserError, match="baseline.*fsl_train"):
        run({"": circuit_run()}, features(), None, None, spec(baseline="other", sequences=10))


def test_split_over_settings_and_checkpoints(tmp_path):
    asked = spec(checkpoints=2, baseline="fsl_train", report_at=[160])
    items = asked.items(lambda _: {"training": Training(sequences=320, checkpoint_every=320)})
    assert items == 12
    subject = {"": circuit_run()}
    assert_split_equals_whole(circuit_settings, subject, features(), asked, items, tmp_path, (2, 5))
