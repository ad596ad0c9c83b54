"""Weights on disk, brought layer by layer: the same numbers as with all of them in memory."""

from __future__ import annotations

from pathlib import Path

import accelerate
import pytest
import torch

from repro.interventions.head_importance import Fitted, How, importance
from repro.interventions.masked_rows import pack
from repro.interventions.masked_sweep import sweep
from repro.models.offload import at_hand, device_of
from tests.interventions.scored_cases import questions, some_masks
from tests.interventions.test_head_importance import examples
from tests.models.tiny_models import tiny


@pytest.mark.parametrize("kind", ["opt", "gpt2", "llama"])
def test_a_model_on_disk_gives_the_same_numbers(kind: str, tmp_path: Path) -> None:
    whole, away = tiny(kind, "sdpa"), tiny(kind, "sdpa")
    accelerate.disk_offload(away.hf, str(tmp_path), execution_device=torch.device("cpu"))
    assert next(away.layers[1].block.parameters()).device.type == "meta"
    assert away.device == torch.device("cpu") == device_of(away.layers[0].down)
    rows = [row for number, one in enumerate(questions()) for row in pack(number, one, 32)]
    expected, found = (sweep(model, rows, some_masks(), None) for model in (whole, away))
    torch.testing.assert_close(found.log_probability, expected.log_probability, rtol=0, atol=0)
    some = [Fitted.of(one, 32) for one in examples(3)]
    expected, found = (importance(model, some, How(recompute=True)) for model in (whole, away))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert next(away.layers[1].block.parameters()).device.type == "meta"


def test_weights_are_taken_away_also_after_an_exception(tmp_path: Path) -> None:
    model = tiny("opt")
    accelerate.disk_offload(model.hf, str(tmp_path), execution_device=torch.device("cpu"))
    block = model.layers[0].block
    with pytest.raises(ZeroDivisionError), at_hand(block):
        assert block.fc1.weight.device.type == "cpu"  # type: ignore[union-attr]
        raise ZeroDivisionError
    assert block.fc1.weight.device.type == "meta"  # type: ignore[union-attr]
