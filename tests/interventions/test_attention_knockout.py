"""Knockouts of the last position: one token a cell against whole passes, and what holds by construction."""

from __future__ import annotations

import pytest
import torch
from models.tiny_models import EAGER_ONLY, KINDS, exact, tiny
from torch import Tensor

from repro.data.token_batch import Side, TokenBatch
from repro.errors import UserError
from repro.interventions.attention_knockout import Clean, NothingLeft, knockout, probability, window
from repro.interventions.attention_knockout_definition import knockout_by_definition, one
from repro.interventions.lm_edits import At, CutEdges
from repro.interventions.lm_run import run
from repro.models.language_model import LanguageModel

DEPTH = 3
ROWS = ([5, 9, 12, 30, 7, 8], [44, 3, 6, 2], [17, 18, 19, 20, 21, 22, 23, 11])
ANSWER = torch.tensor([3, 40, 17])
WINDOWS = [window(centre, size, DEPTH) for size in (1, 2) for centre in range(DEPTH)] + [range(DEPTH)]


def model_of(kind: str, dtype: torch.dtype = torch.float64) -> LanguageModel:
    """Eager OPT, GPT-NeoX and Llama take the softmax in float32 whatever the dtype; SDPA does not.

    GPT-Neo and GPT-J have eager attention only, and take scores in float32: one column at a time or all at
    once are rounded differently, in the eighth digit.
    """
    return tiny(kind, "eager" if kind in EAGER_ONLY else "sdpa", dtype)


def batch_of(side: Side = "right", rows: tuple[list[int], ...] = ROWS) -> TokenBatch:
    return TokenBatch.of(rows, 1, side)


def sets_of(batch: TokenBatch) -> Tensor:
    """Two random sets, the last position, the one before, everything, and nothing: [B, 6, T]."""
    columns, end = torch.arange(batch.tokens.shape[1])[None], batch.last[:, None]
    place = columns - (end - batch.mask.sum(1, keepdim=True) + 1)  # counted from the first real token
    some = [(place * factor + shift) % 5 < 2 for factor, shift in ((3, 0), (7, 2))]
    parts = [*some, columns == end, columns == end - 1, batch.mask, torch.zeros_like(batch.mask)]
    return torch.stack(parts, 1) & batch.mask[:, None]


def fast(model: LanguageModel, batch: TokenBatch, sets: Tensor, left: NothingLeft = "uniform") -> Tensor:
    return knockout(model, Clean.of(model, batch), sets, WINDOWS, ANSWER[: len(batch)], left)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_cell_is_its_whole_pass(kind: str, side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of(side)
    sets = sets_of(batch)
    left: NothingLeft = "uniform" if side == "right" else "zero"
    ways = ((lambda: model_of(kind), 1e-5), (lambda: exact(kind, monkeypatch, "sdpa"), 1e-9))
    for made, tolerance in ways:
        model = made()
        expected = knockout_by_definition(model, batch, sets, WINDOWS, ANSWER, left)
        found = fast(model, batch, sets, left)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)


def test_eager_attention_too() -> None:
    batch = batch_of()
    for kind in ("gpt2", "llama", "gpt_neox"):
        model = tiny(kind, "eager")
        expected = knockout_by_definition(model, batch, sets_of(batch), WINDOWS, ANSWER)
        torch.testing.assert_close(fast(model, batch, sets_of(batch)), expected, rtol=1e-5, atol=0)


def test_windows_are_cut_off_and_not_shifted() -> None:
    """The lists of the released notebook: even sizes have one more layer below."""
    assert list(window(0, 9, 48)) == [0, 1, 2, 3, 4]
    assert list(window(20, 10, 48)) == list(range(15, 25))
    assert list(window(47, 9, 48)) == list(range(43, 48))
    assert list(window(1, 100, 3)) == [0, 1, 2]
    for depth in (1, 4):
        assert [list(window(centre, 1, depth)) for centre in range(depth)] == [[i] for i in range(depth)]
    for size in range(1, 9):
        centre = window(10, size, 30)
        assert len(centre) == size and centre.start == 10 - size // 2
    with pytest.raises(UserError, match="at least 1"):
        window(0, 0, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_cuts_leave_earlier_positions_and_lower_layers_as_they_are(kind: str) -> None:
    """What the fast path rests on, read from whole passes."""
    model, batch = model_of(kind), batch_of(rows=(ROWS[0],))
    reads = [At("resid_post", layer) for layer in range(DEPTH)]
    clean = run(model, batch, reads=reads, logits=None)
    end = int(batch.last)
    for first in range(DEPTH):
        cuts = [CutEdges(layer, [end], [end - 1, end]) for layer in range(first, DEPTH)]
        found = run(model, batch, cuts, reads, logits=None)
        for layer, read in enumerate(reads):
            assert torch.equal(found[read][:, :end], clean[read][:, :end])
            assert torch.equal(found[read], clean[read]) == (layer < first)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_cut_changes_nothing_at_all(kind: str) -> None:
    """Empty sets, and sets beyond the reach of local layers: exactly the untouched probability."""
    model, batch = model_of(kind, torch.float32), batch_of()
    base = probability(Clean.of(model, batch).logits, ANSWER)
    found = fast(model, batch, sets_of(batch))
    assert torch.equal(found[:, 5], base[:, None].expand_as(found[:, 5]))
    assert not torch.equal(found[:, 0], base[:, None].expand_as(found[:, 0]))
    if kind == "gpt_neo":  # layers 0 and 2 see three tokens
        far = torch.zeros(3, 1, batch.tokens.shape[1], dtype=torch.bool)
        far[:, :, 0] = True
        single = knockout(
            model, Clean.of(model, batch), far, [range(0, 1), range(1, 2), range(2, 3)], ANSWER
        )[:, 0]
        assert torch.equal(single[:, 0], base) and torch.equal(single[:, 2], base)
        assert (single[:, 1] != base).all()


def test_a_position_that_has_nothing_left_sees_everything_alike_or_nothing() -> None:
    """A prompt of one token sees itself alone: alike is as before, and nothing is the output bias."""
    model, batch = model_of("gpt2"), TokenBatch.of([[7]])
    cut, answer = torch.ones(1, 1, 1, dtype=torch.bool), torch.tensor([3])
    clean = Clean.of(model, batch)
    base = probability(clean.logits, answer)
    alike, nothing = (
        knockout(model, clean, cut, [range(0, 3)], answer, left)[0, 0] for left in ("uniform", "zero")
    )
    torch.testing.assert_close(alike, base, rtol=1e-12, atol=0)
    x = clean.resid[0]
    for layer in model.layers:
        bias = layer.output_bias
        assert bias is not None
        x = x + bias
        x = x + layer.mlp(layer.norm2(x))
    expected = probability(model.unembed(model.final_norm(x)), answer)
    torch.testing.assert_close(nothing, expected, rtol=1e-9, atol=0)
    assert not torch.allclose(nothing, base, rtol=1e-3)


def test_uniform_attention_is_that_of_the_released_code() -> None:
    """Its mask adds the lowest number to every score that is cut; in such a sum the score is lost."""
    model, batch = model_of("gpt2", torch.float32), TokenBatch.of([ROWS[0]])
    low = torch.finfo(torch.float32).min
    scores = torch.randn(6) + low  # all columns cut: the scores vanish in the sum
    assert torch.equal(torch.softmax(scores, 0), torch.full((6,), 1 / 6))
    everything = torch.ones(1, 6, dtype=torch.bool)
    reads = [At("pattern", 1, positions=[5])]
    seen: list[Tensor] = []

    def look(edits: list) -> Tensor:
        seen.append(run(model, batch, edits, reads, logits=None)[reads[0]])
        return seen[-1]

    from repro.interventions.attention_knockout_definition import _uniform

    pattern = look([CutEdges(1, [5], list(range(6))), *_uniform(model, batch, everything, 1)])
    torch.testing.assert_close(pattern, torch.full_like(pattern, 1 / 6))


def test_a_prompt_is_the_same_alone_and_in_any_batch() -> None:
    for kind in ("gpt2", "llama"):
        model, batch = model_of(kind), batch_of()
        whole = fast(model, batch, sets_of(batch))
        order = torch.tensor([2, 0, 1])
        turned = knockout(
            model, Clean.of(model, batch.rows(order)), sets_of(batch)[order], WINDOWS, ANSWER[order]
        )
        torch.testing.assert_close(turned, whole[order], rtol=1e-12, atol=0)
        for row, ids in enumerate(ROWS):
            alone = batch_of(rows=(ids,))
            single = knockout(model, Clean.of(model, alone), sets_of(alone), WINDOWS, ANSWER[row : row + 1])
            torch.testing.assert_close(single[0], whole[row], rtol=1e-11, atol=0)


def test_windows_share_what_they_have_in_common_and_nothing_else() -> None:
    """All windows of a model of three layers together, in any order and twice, are each of them alone."""
    model, batch = model_of("gpt_neox_sequential"), batch_of()
    clean, sets = Clean.of(model, batch), sets_of(batch)
    every = [range(start, stop) for start in range(3) for stop in range(start, 4)]
    mixed = [*every[::-1], *every]
    together = knockout(model, clean, sets, mixed, ANSWER)
    for place, layers in enumerate(mixed):
        alone = knockout(model, clean, sets, [layers], ANSWER)[:, :, 0]
        torch.testing.assert_close(together[:, :, place], alone, rtol=1e-12, atol=0)
    base = probability(clean.logits, ANSWER)
    empty = [place for place, layers in enumerate(mixed) if not len(layers)]
    assert empty and all(torch.equal(together[:, s, at], base) for s in range(6) for at in empty)


def test_the_definition_is_edges_cut_row_by_row() -> None:
    """One row, one set, one layer: the very edit, run by hand."""
    model, batch = model_of("gptj"), TokenBatch.of([ROWS[0]])
    chosen = torch.zeros(1, 6, dtype=torch.bool)
    chosen[0, 1:3] = True
    logits = run(model, batch, [CutEdges(1, [5], [1, 2])], logits="all").logits
    assert logits is not None
    expected = logits[0, -1].softmax(-1)[ANSWER[0]]
    found = one(model, batch, chosen, [1], ANSWER[:1])
    torch.testing.assert_close(found, expected[None], rtol=1e-12, atol=0)


def test_probabilities_of_large_logits_are_exact() -> None:
    logits = torch.tensor([[-100.0, -101.0, -130.0], [1e4, 1e4, 0.0]])
    found = probability(logits, torch.tensor([0, 1]))
    expected = logits.double().softmax(-1)[torch.arange(2), torch.tensor([0, 1])]
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=0)
