"""What studies with retrainings cost, by hand."""

from __future__ import annotations

import pytest

from repro.analyses.influence_study_specs import DatamodelingScore, Removal
from repro.data.specs import Data
from repro.models.known_shapes import KNOWN
from repro.tuning_costs import step_flops

GPT2 = KNOWN["gpt2"]
WIKITEXT = Data.choose({"kind": "wikitext", "train": 4656, "query": 481}, "data")


def test_five_hundred_retrainings_on_half_of_the_blocks() -> None:
    files = DatamodelingScore.parse({"given": True}, "analysis").cost(GPT2, WIKITEXT)
    found = DatamodelingScore.parse({}, "analysis").cost(GPT2, WIKITEXT)
    trained = 500 * 3 * step_flops(GPT2, 2328, 512)
    measured = 500 * 481 * GPT2.forward_flops(512, 512)
    assert found.total_flops(GPT2) - files.total_flops(GPT2) == pytest.approx(trained + measured)
    assert any("500 retrainings, 3 epochs of 2,328 blocks" in line for line in found.lines)


def test_curves_of_removal_share_their_start() -> None:
    found = Removal.parse({"strategies": ["identity"]}, "analysis").cost(GPT2, WIKITEXT)
    trainings = [work for work in found.works if "retrainings" in work.says]
    assert [work.sequences for work in trainings] == [5 * (1 + 2 * 4) * 3 * 4656]
