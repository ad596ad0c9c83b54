"""Sizes against published numbers, against transformers' own modules, and against sums done by hand."""

from __future__ import annotations

import pytest

from repro.models.known_shapes import KNOWN, find
from repro.models.shapes import Shape


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
        ("facebook/opt-125m", 125_239_296),
        ("facebook/opt-350m", 331_196_416),
        ("facebook/opt-66b", 65_719_701_504),
        ("EleutherAI/gpt-j-6b", 6_050_882_784),
        ("EleutherAI/pythia-70m", 70_426_624),
        ("EleutherAI/pythia-6.9b", 6_857_302_016),
        ("EleutherAI/pythia-12b", 11_846_072_320),
        ("EleutherAI/gpt-neox-20b", 20_554_567_680),
    ],
)
def test_published_counts(name: str, parameters: int) -> None:
    shape = find(name)
    assert shape is not None and shape.parameters == parameters


def test_opt_66b() -> None:
    shape = KNOWN["facebook/opt-66b"]
    assert (shape.layers, shape.width, shape.heads, shape.head_width) == (64, 9216, 72, 128)
    assert shape.weights_bytes("float16") == shape.weights_bytes("bfloat16") == 131_439_403_008
    assert shape.weights_bytes("float32") == 2 * 131_439_403_008
    # 4 (d^2 + d) attention, 8 d^2 + 5 d MLP, 4 d norms.
    assert shape.layer_parameters == 12 * 9216**2 + 13 * 9216 == 1_019_335_680


def test_forward_of_opt_66b_is_130_5_gflop_a_token_and_2_36_mflop_a_pair_of_tokens() -> None:
    shape = KNOWN["facebook/opt-66b"]
    one, two = shape.forward_flops(1), shape.forward_flops(2)
    pairs = (two - 2 * one) / 2  # a T + b T^2 at 1 and 2 tokens
    assert pairs == pytest.approx(2.36e6, rel=1e-3) and pairs == 4 * 64 * 9216
    assert one - pairs == pytest.approx(130.5e9, rel=1e-3)
    assert shape.forward_flops(2048) == pytest.approx((267 + 10) * 1e12, rel=1e-3)
    assert shape.forward_flops(2048, causal=True) == pytest.approx((267 + 5) * 1e12, rel=1e-3)


def test_gradients_of_activations_cost_two_forwards() -> None:
    """2048 tokens of OPT-66B: 549 TFLOP with weights frozen; a third forward with weight gradients."""
    shape = KNOWN["facebook/opt-66b"]
    forward = shape.forward_flops(2048, causal=True)
    assert forward + shape.backward_flops(2048, causal=True) == pytest.approx(549e12, rel=1e-3)
    recomputed = 2 * forward + shape.backward_flops(2048, causal=True)
    assert recomputed == pytest.approx(822e12, rel=2e-3)
    whole = shape.backward_flops(2048, causal=True, weight_gradients=True)
    assert whole == pytest.approx(2 * forward, rel=1e-12)


def test_the_unembedding_counts_only_where_it_is_asked_for() -> None:
    """GPT-2 on 50 prompts of 15 tokens: 127 GFLOP the trunk, 58 the unembedding."""
    shape = KNOWN["gpt2"]
    trunk, whole = 50 * shape.forward_flops(15), 50 * shape.forward_flops(15, unembedded=15)
    assert trunk == pytest.approx(127.8e9, rel=1e-3)
    assert whole - trunk == pytest.approx(57.9e9, rel=1e-3)
    assert shape.unembedding_flops == 2 * 50257 * 768


def test_saved_activations_of_opt_66b() -> None:
    shape = KNOWN["facebook/opt-66b"]
    fused = shape.saved_bytes(2048, 2048, "float16", "sdpa")
    eager = shape.saved_bytes(2048, 2048, "float16", "eager")
    assert fused / 2**30 == pytest.approx(22.5, abs=0.05)
    # Without the fused kernel's output, with a pattern of 72 x 2048 x 2048 a layer.
    assert (eager - 0.9 * fused) / 64 / 2**30 == pytest.approx(0.5625)


def test_grouped_queries_and_gates_by_hand() -> None:
    shape = Shape("llama", 2, 4, 2, 8, 3, 10, 11, tied=False)
    layer = 8 * 12 + 2 * 8 * 6 + 12 * 8 + 3 * 8 * 10 + 2 * 8
    assert shape.layer_parameters == layer
    assert shape.parameters == 2 * layer + 2 * 11 * 8 + 8
    assert shape.forward_flops(1) == 2 * 2 * (layer - 16) + 4 * 2 * 12


def test_layers_add_up() -> None:
    one, three = (Shape("gpt2", layers, 2, 2, 8, 4, 32, 20, 16) for layers in (1, 3))
    assert three.parameters - one.parameters == 2 * one.layer_parameters
    assert three.forward_flops(5) == 3 * one.forward_flops(5)
