"""What path patching will cost: the published sizes by hand, and OPT-66B from its config alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from repro.analyses.path_patching_specs import FlipEffects, IterativePathPatching, PathPatching
from repro.config import compose
from repro.costs import Cost
from repro.estimates import estimate
from repro.models.known_shapes import KNOWN

GPT2 = KNOWN["gpt2"]
PROMPTS = SimpleNamespace(n=50)
MOVERS = ["9.6.q", "9.9.q", "10.0.q"]


def cost(**said: Any) -> Cost:
    return PathPatching(**said).cost(GPT2, PROMPTS)


def test_two_cached_runs() -> None:
    """0.26 TFLOP for 50 prompts of 15 tokens, so 20 / 15 of it for 20; with frozen MLPs little else."""
    frozen = cost(mlps="freeze")
    assert frozen.flops == 0 and frozen.total_flops(GPT2) == pytest.approx(0.26e12 * 20 / 15, rel=0.03)
    assert frozen.modelled


def test_to_the_logits_with_mlps_recomputed() -> None:
    """1002 live senders over the layers, 50 prompts, 16 d^2 operations each: 0.47 TFLOP."""
    assert cost().flops == 1002 * 50 * 16 * 768**2 == pytest.approx(0.47e12, rel=0.01)


def test_through_the_queries_of_three_heads() -> None:
    """Up to layer 10: 705 live senders (0.33 TFLOP); then 130 cases through layers 9 to 11 (0.28 TFLOP)."""
    up, down = 705 * 50 * 16 * 768**2, 130 * 50 * 3 * 24 * 768**2
    assert (up, down) == pytest.approx((0.33e12, 0.28e12), rel=0.02)
    assert cost(receivers=MOVERS).flops == up + down
    assert cost(receivers=MOVERS, downstream="filter").flops == up
    assert cost(receivers=MOVERS, mlps="freeze", downstream="filter").flops == 0


def test_further_positions_cost_more() -> None:
    at_end, elsewhere = cost(receivers=["8.6.v"]), cost(receivers=["8.6.v@S2"])
    everywhere = cost(receivers=["8.6.v"], positions="all")
    assert at_end.flops < elsewhere.flops < everywhere.flops


def test_classes_cost_no_less_than_the_heads_they_may_stand_for() -> None:
    most = cost(receivers=["class:movers.q"]).flops
    assert max(cost(receivers=[f"{layer}.0.q"]).flops for layer in range(1, 12)) == most


def test_several_sweeps() -> None:
    one, flips = cost(), FlipEffects(flips={"a": ["IO"], "b": ["S"]}).cost(GPT2, PROMPTS)
    assert flips.total_flops(GPT2) == 2 * one.total_flops(GPT2)
    steps = IterativePathPatching().cost(GPT2, PROMPTS)
    assert steps.flops == one.flops + cost(receivers=["class:found.q@END"]).flops


def test_opt_66b_from_the_config_alone() -> None:
    """64 layers of 72 heads: 16 d^2 operations for each live sender and prompt, and two cached runs."""
    words = ["paper/ioi=path_patching", "model=opt_66b", "hardware=slurm_8xa100", "data.n=50"]
    found = estimate(compose(words))
    live = sum(72 * (layer + 1) + layer for layer in range(64))
    caches = 2 * 50 * 20 * 2 * 64 * 12 * 9216**2  # matrices; attention over 20 tokens adds 0.04 %
    assert found.known and found.flops == pytest.approx(live * 50 * 16 * 9216**2 + caches, rel=1e-3)
    assert found.seconds > found.flops / (312e12 * 0.4)
