"""Many masks in one sweep give what one whole pass a mask and choice gives, to 1e-10 in float64."""

from __future__ import annotations

import random

import numpy as np
import pytest

from repro.data.scored_texts import Question
from repro.errors import UserError
from repro.interventions import masked_sweep
from repro.interventions.masked_definition import log_likelihood
from repro.interventions.masked_rows import Row, batches, pack, stack
from repro.interventions.masks import Mask, count, prune, rank_ffns, rank_heads
from repro.models.language_model import LanguageModel
from tests.interventions.scored_cases import questions, some_masks
from tests.models.tiny_models import KINDS, exact, tiny


def summed(
    model: LanguageModel, rows: list[Row], masks: list[Mask], columns: int | None = None
) -> tuple[dict, dict]:
    """By (mask, question, choice): the sum of log-probabilities, and whether all tokens are the likeliest."""
    scores, batch = masked_sweep.sweep(model, rows, masks, columns), stack(rows)
    total: dict = {}
    greedy: dict = {}
    for mask in range(len(masks)):
        for place, key in enumerate(zip(batch.question.tolist(), batch.choice.tolist(), strict=True)):
            total[mask, *key] = total.get((mask, *key), 0.0) + float(scores.log_probability[mask, place])
            greedy[mask, *key] = greedy.get((mask, *key), True) and bool(scores.likeliest[mask, place])
    return total, greedy


@pytest.mark.parametrize("kind", KINDS)
def test_a_sweep_is_one_whole_pass_for_each_mask_and_choice(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = exact(kind, monkeypatch, "sdpa")
    masks = some_masks(ffns=kind != "opt_post_norm")
    asked = questions()
    for some in batches([row for n, one in enumerate(asked) for row in pack(n, one, 32)], 120):
        total, greedy = summed(model, some, masks)
        for (mask, number, choice), value in total.items():
            expected, first = log_likelihood(model, asked[number], choice, masks[mask])
            assert value == pytest.approx(expected, abs=1e-10), (mask, number, choice)
            assert greedy[mask, number, choice] == first


@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_parts_of_a_sweep_and_the_vocabulary_cut(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked, masks = exact(kind, monkeypatch, "sdpa"), questions(1), some_masks()
    rows = [row for n, one in enumerate(asked[:3]) for row in pack(n, one, 32)]
    whole, _ = summed(model, rows, masks)
    monkeypatch.setattr(masked_sweep, "PASS_TOKENS", 7)
    monkeypatch.setattr(masked_sweep, "LOGIT_ROWS", 2)
    parts, _ = summed(model, rows, masks)
    assert parts == pytest.approx(whole, abs=1e-12)
    fewer = Question(((5, 6, 7),), ((3, 4), (8,)), (0,))
    total, _ = summed(model, pack(0, fewer, 32), masks[:4], columns=40)
    for (mask, _, choice), value in total.items():
        assert value == pytest.approx(log_likelihood(model, fewer, choice, masks[mask], 40)[0], abs=1e-10)


def test_what_choices_share_stands_in_a_row_once() -> None:
    (row,) = pack(0, Question(((1, 2, 3),), ((4, 5), (4, 6), (4, 7, 8)), (0,)), 32)
    assert row.tokens == (1, 2, 3, 4, 7) and row.positions == (0, 1, 2, 3, 4) and row.owner == (0, 0, 0, 0, 3)
    assert [(one.choice, one.column, one.token) for one in row.targets] == [
        (0, 2, 4), (0, 3, 5), (1, 2, 4), (1, 3, 6), (2, 2, 4), (2, 3, 7), (2, 4, 8),
    ]  # fmt: skip
    own = pack(0, Question(((1, 2), (3, 2)), ((4,), (4,)), (0,)), 32)
    assert [one.tokens for one in own] == [(1, 2), (3, 2)]
    (long,) = pack(0, Question((tuple(range(10)),), ((20, 21),), (0,)), 6)
    assert long.tokens == (5, 6, 7, 8, 9, 20) and [one.token for one in long.targets] == [20, 21]


def test_an_ffn_of_a_model_that_normalises_after_is_refused() -> None:
    model = tiny("opt_post_norm")
    with pytest.raises(UserError, match="normalises after each sublayer"):
        masked_sweep.sweep(model, pack(0, questions()[0], 32), [Mask.of(3, (), [1])], None)


def test_schedule_of_the_paper() -> None:
    heads = [count(percent, 4608) for percent in range(10, 100, 10)]
    assert heads == [460, 921, 1382, 1843, 2304, 2764, 3225, 3686, 4147]
    assert [count(percent, 64) for percent in range(10, 100, 10)] == [6, 12, 19, 25, 32, 38, 44, 51, 57]


def test_rankings_keep_ties_in_order() -> None:
    assert rank_heads(np.array([[2.0, 0.0], [1.0, 0.0]])).tolist() == [1, 3, 2, 0]
    assert rank_ffns(np.array([0.5, -1.0, 0.5, -1.0])).tolist() == [1, 3, 0, 2]
    assert prune(2, 2, [1, 3, 2, 0], 50, [1, 0], 50) == Mask.of(2, [(0, 1), (1, 1)], [1])
    assert prune(2, 2, [1, 3, 2, 0], 49) == Mask.of(2, [(0, 1)]) and prune(2, 2) == Mask.of(2)
    assert Mask.of(2).digest != Mask.of(2, (), [0]).digest == Mask.of(2, (), [0, 0]).digest


def test_rows_of_similar_length_are_put_together() -> None:
    rng = random.Random(0)
    rows = [Row((1,) * rng.randint(1, 9), (), (), ()) for _ in range(40)]
    made = list(batches(rows, 20))
    assert sorted(len(row.tokens) for some in made for row in some) == sorted(len(r.tokens) for r in rows)
    assert all(len(some) == 1 or len(some[0].tokens) * len(some) <= 20 for some in made)
