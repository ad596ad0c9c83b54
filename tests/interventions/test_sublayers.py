"""Cancelled sublayers against hooks on the library's modules, and against masks made by hand."""

from __future__ import annotations

import pytest
import torch
from models.tiny_models import KINDS, tiny

from repro.data.token_batch import TokenBatch
from repro.interventions.lm_edits import At
from repro.interventions.lm_restart import Restart
from repro.interventions.lm_run import run
from repro.interventions.sublayers import SUBLAYERS, cancelled

BATCH = TokenBatch.of([[5, 9, 3, 17, 40], [8, 2, 33, 21, 7]])
LAST = torch.tensor([2, 1])


@pytest.mark.parametrize("kind", KINDS)
def test_released_attention_is_uniform_over_what_a_position_may_see(kind: str) -> None:
    model = tiny(kind, dtype=torch.float64)
    edits = cancelled("MHSA", "released", [1], LAST[:1], [0])
    places = [At("pattern", 1), At("v", 1), At("attn_out", 1)]
    found = run(model, BATCH, edits, places, logits=None)
    plain = run(model, BATCH, reads=places, logits=None)
    at = torch.arange(5)
    allowed = model.layers[1].allowed(at, at).double()
    uniform = allowed / allowed.sum(-1, keepdim=True)
    torch.testing.assert_close(found[places[0]][0], uniform.expand(model.heads, -1, -1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[places[0]][1], plain[places[0]][1])  # the other row is untouched
    values = found[places[1]].repeat_interleave(model.heads // model.kv_heads, 2)
    mixed = torch.einsum("qk,khd->qhd", uniform, values[0])
    torch.testing.assert_close(found[places[2]][0], model.layers[1].attn_out(mixed), rtol=1e-6, atol=1e-6)


def test_released_attention_is_what_the_pinned_version_made_of_an_all_blocked_mask() -> None:
    """4.30: scores, future ones lowest, plus the lowest number everywhere; then softmax in that precision."""
    model = tiny("gpt2")
    scores_at, pattern_at = At("attn_scores", 0), At("pattern", 0)
    scores = run(model, BATCH, reads=[scores_at], logits=None)[scores_at]
    causal = torch.ones(5, 5).tril().bool()
    old = torch.where(causal, scores, torch.finfo(torch.float32).min) + torch.finfo(torch.float32).min
    expected = torch.softmax(old, dim=-1)
    edits = cancelled("MHSA", "released", [0], LAST, [0, 1])
    found = run(model, BATCH, edits, [pattern_at], logits=None)[pattern_at]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_released_mlp_is_its_bias(kind: str) -> None:
    model = tiny(kind, dtype=torch.float64)
    place = At("mlp_out", 1)
    found = run(model, BATCH, cancelled("MLP", "released", [1], LAST, [0, 1]), [place], logits=None)[place]
    bias = model.layers[1].down.bias
    expected = torch.zeros(model.width, dtype=torch.float64) if bias is None else bias
    torch.testing.assert_close(found, expected.expand_as(found))  # type: ignore[union-attr]


@pytest.mark.parametrize("sublayer", SUBLAYERS)
@pytest.mark.parametrize("kind", ["gpt2", "gptj", "opt"])
def test_zeros_are_where_they_are_said_to_be(kind: str, sublayer: str) -> None:
    model = tiny(kind, dtype=torch.float64)
    site = "mlp_out" if sublayer == "MLP" else "attn_out"
    place = At(site, 2)
    plain = run(model, BATCH, reads=[place], logits=None)[place]
    everywhere = run(model, BATCH, cancelled(sublayer, "zero_all", [2], LAST, [0, 1]), [place], logits=None)  # type: ignore[arg-type]
    assert not everywhere[place].any()
    edits = cancelled(sublayer, "zero_subject_last", [2], LAST, [0, 1])  # type: ignore[arg-type]
    one = run(model, BATCH, edits, [place], logits=None)[place]
    expected = plain.clone()
    expected[0, 2] = expected[1, 1] = 0.0
    torch.testing.assert_close(one, expected)


@pytest.mark.parametrize("how", ["released", "zero_subject_last", "zero_all"])
@pytest.mark.parametrize("kind", KINDS)
def test_going_on_from_the_first_cancelled_layer_is_a_whole_run(kind: str, how: str) -> None:
    """Both sublayers side by side as copies of the batch, stopped before the last block."""
    model = tiny(kind, dtype=torch.float64)
    restart, end = Restart(model, BATCH), 2
    edits = [
        edit
        for copy, sublayer in enumerate(SUBLAYERS)
        for edit in cancelled(sublayer, how, [1], LAST, range(2 * copy, 2 * copy + 2))  # type: ignore[arg-type]
    ]
    found = restart.go(1, edits, copies=2, end=end)
    place = At("resid_post", end - 1)
    for copy, sublayer in enumerate(SUBLAYERS):
        whole = run(model, BATCH, cancelled(sublayer, how, [1], LAST, [0, 1]), [place], logits=None)  # type: ignore[arg-type]
        torch.testing.assert_close(found[2 * copy : 2 * copy + 2], whole[place], rtol=1e-9, atol=1e-9)
