"""Passes and operations of analyses, by hand and from the cost models of the papers' own sizes."""

from __future__ import annotations

import pytest

from repro.costs import Cost, Work, added, not_modelled
from repro.models.known_shapes import KNOWN

OPT = KNOWN["facebook/opt-66b"]
GPT2 = KNOWN["gpt2"]


def test_one_pass_of_50_prompts_through_gpt2() -> None:
    """750 tokens, logits everywhere: 186 GFLOP."""
    work = Work("caches", sequences=50, length=15, unembedded=15)
    assert work.flops(GPT2) == pytest.approx(186e9, rel=3e-3)
    assert Cost((work,)).forward_tokens == 750 and Cost((work,)).backward_tokens == 0


def test_naive_path_patching_is_four_passes_a_sender() -> None:
    """156 senders: 116 TFLOP."""
    work = Work("four passes a sender", sequences=50, length=15, forwards=4 * 156, unembedded=15)
    assert work.flops(GPT2) == pytest.approx(116e12, rel=5e-3)


def test_head_importance_needs_two_forwards_worth_of_matrices() -> None:
    """OPT-66B: about 26 TFLOP for 100 tokens, three forwards' worth where activations are computed again."""
    importance = Work("importance", sequences=1, length=100, backwards=1, unembedded=0)
    assert importance.flops(OPT) == pytest.approx(26e12, rel=0.02)
    again = Work("importance", sequences=1, length=100, backwards=1, recomputed=True, unembedded=0)
    assert again.flops(OPT) == pytest.approx(3 / 2 * importance.flops(OPT), rel=0.01)
    weights = Work("training", sequences=1, length=100, backwards=1, weight_gradients=True, unembedded=0)
    assert weights.flops(OPT) == pytest.approx(3 / 2 * importance.flops(OPT), rel=0.01)


def test_importance_at_2048_tokens_fits_an_h200_only_with_checkpointing() -> None:
    """22.5 GiB of activations without, 2.25 + 0.35 GiB with; weights 122.4 of 139 GiB."""
    plain = Work("importance", sequences=1, length=2048, backwards=1, unembedded=1)
    again = Work("importance", sequences=1, length=2048, backwards=1, unembedded=1, recomputed=True)
    needed = [OPT.work_bytes(work, "float16", "sdpa") / 2**30 for work in (plain, again)]
    room = 139 - 2 - OPT.weights_bytes("float16") / 2**30
    assert needed[1] < room < needed[0]
    passing = OPT.passing_bytes(2048, 2048, "float16", "sdpa") / 2**30
    assert needed[1] - passing == pytest.approx(2.25 + 0.35, abs=0.01)


def test_weights_are_read_once_a_batch() -> None:
    assert Work("", sequences=12, length=3, forwards=2, batch=4).passes == 6
    assert Work("", sequences=12, length=3, forwards=1, backwards=1, batch=4).passes == 6


def test_cutting_sequences_into_two_works_changes_nothing() -> None:
    whole = Work("", sequences=10, length=7, forwards=3, backwards=1)
    parts = [Work("", sequences=count, length=7, forwards=3, backwards=1) for count in (4, 6)]
    assert added([Cost((part,)) for part in parts]).total_flops(GPT2) == pytest.approx(whole.flops(GPT2))


def test_what_is_not_modelled_says_so() -> None:
    both = added([Cost(flops=5), not_modelled("something")])
    assert not both.modelled and both.total_flops(GPT2) == 5 and "something" in both.lines[0]
