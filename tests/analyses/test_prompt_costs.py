"""What measurements on prompts will cost, in passes by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from repro.analyses.lm_measure_specs import ActivationPatching, LogitDifference
from repro.models.known_shapes import KNOWN

GPT2 = KNOWN["gpt2"]
PROMPTS = SimpleNamespace(n=50)


def test_one_pass_over_the_prompts() -> None:
    cost = LogitDifference().cost(GPT2, PROMPTS)
    assert cost.total_flops(GPT2) == 50 * GPT2.forward_flops(20, 1) and cost.modelled
    assert "assumed, since only the file tells" in LogitDifference().cost(GPT2, SimpleNamespace()).lines[0]


def test_every_head_and_layer_from_its_layer_on() -> None:
    """144 heads, 12 attention and 12 MLP outputs: 168 passes of 6.5 layers on average; 6 whole runs."""
    cost = ActivationPatching(sites=["z", "attn_out", "mlp_out"]).cost(GPT2, PROMPTS)
    expected = 50 * (6 + 168 * 6.5 / 12) * GPT2.forward_flops(20, 1)
    assert cost.total_flops(GPT2) == pytest.approx(expected)
    last = ActivationPatching(sites=["mlp_out"], layers=[11]).cost(GPT2, PROMPTS)
    assert last.total_flops(GPT2) == pytest.approx(50 * (4 + 1 / 12) * GPT2.forward_flops(20, 1))


def test_places_are_patched_one_at_a_time() -> None:
    one, two = (
        ActivationPatching(sites=["z"], positions=names).cost(GPT2, PROMPTS)
        for names in (["END"], ["S2", "END"])
    )
    assert two.works[1].flops(GPT2) == 2 * one.works[1].flops(GPT2)
