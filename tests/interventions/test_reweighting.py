"""Rows of the extraction table against explicit loops, for every family, both ways, padded on either side."""

from __future__ import annotations

import math

import pytest
import torch
from models.tiny_models import KINDS, tiny

from repro.data.facts_records import Fact
from repro.data.facts_tokens import FactBatch, tokenise
from repro.interventions.lm_edits import At
from repro.interventions.lm_run import run
from repro.interventions.reweighting import ROWS, attention_reads, kept_columns, reweighted, variants

PROMPTS = [[5, 9, 3, 17, 40, 8], [8, 2, 33, 21]]
SUBJECT = [(1, 3), (0, 0)]  # first and last column, both included
HAND = {
    "subject": [{0, 4, 5}, {1, 2, 3}],
    "subject-last": [{0, 1, 2, 4, 5}, {1, 2, 3}],
    "last": [{0, 1, 2, 3, 4}, {0, 1, 2}],
    "subject-last+last": [{0, 1, 2, 4}, {1, 2}],
    "non-subject": [{1, 2, 3}, {0}],
    "non-subject-ex-last": [{1, 2, 3, 5}, {0, 3}],
    "all-but-first": [{0}, {0}],
    "all-but-last": [{5}, {3}],
    "all-but-subject-last": [{3}, {0}],
    "all-but-subject-last+last": [{3, 5}, {0, 3}],
    "MHSA*": [set(range(6)), set(range(4))],
    "all": [set(), set()],
}


def facts() -> FactBatch:
    own = [
        Fact(i, "", tokens=tuple(ids), span=(a, b + 1))
        for i, (ids, (a, b)) in enumerate(zip(PROMPTS, SUBJECT, strict=True))
    ]
    return tokenise(own, None, None, "offsets")


def test_columns_of_every_row() -> None:
    assert set(ROWS) == set(HAND)
    for row in ROWS:
        assert [set(kept.nonzero().flatten().tolist()) for kept in kept_columns(facts(), row)] == HAND[row], (
            row
        )


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_a_loop_over_heads_and_columns(kind: str) -> None:
    model, asked = tiny(kind, dtype=torch.float64), facts()
    pairs = attention_reads(model, asked)
    attn = [At("attn_out", layer, positions=asked.end) for layer in range(model.depth)]
    kept = run(model, asked.batch, reads=[*attn, *(place for pair in pairs for place in pair)], logits=None)
    for layer, (value, pattern) in zip(model.layers, pairs, strict=True):
        values, patterns = kept[value], kept[pattern]
        got = variants(layer, values, patterns, asked, ("released", "renormalised"))
        # MHSA*: all columns are MHSA itself.
        torch.testing.assert_close(got[0, 0], kept[attn[layer.index]][:, 0], rtol=1e-9, atol=1e-11)
        for way, how in enumerate(("released", "renormalised")):
            for index, row in enumerate(ROWS):
                for b in range(2):
                    end = asked.end[b : b + 1]
                    visible = {c for c in range(6) if layer.allowed(end, torch.tensor([c]))}
                    hand = by_hand(layer, values[b], patterns[b, :, 0], HAND[row][b] & visible, row, how)
                    torch.testing.assert_close(got[way, index, b], hand, rtol=1e-9, atol=1e-11)


def by_hand(layer, value, pattern, kept: set[int], row: str, how: str) -> torch.Tensor:
    """One prompt, one row: weights made one by one, heads added one by one, and the bias."""
    total = torch.zeros(layer.output_matrix.shape[-1], dtype=torch.float64)
    for head in range(layer.heads):
        old = {c: float(pattern[head, c]) for c in kept}
        if row == "MHSA*":
            new = old
        elif how == "released":
            new = {c: math.exp(w) / sum(math.exp(x) for x in old.values()) for c, w in old.items()}
        else:
            new = {c: w / sum(old.values()) for c, w in old.items()}
        z = sum((w * value[c, head * layer.kv_heads // layer.heads] for c, w in new.items()), 0.0)
        if new:
            total = total + z @ layer.output_matrix[head]
    return total if layer.output_bias is None else total + layer.output_bias


def test_the_released_second_softmax_is_the_literal_one() -> None:
    pattern = torch.softmax(torch.randn(2, 3, 1, 5, dtype=torch.float64), -1)
    kept = torch.tensor([[True, False, True, True, False], [False, True, False, False, False]])
    literal = torch.softmax(torch.where(kept[:, None, None], pattern, -1e6), -1)
    found = reweighted(pattern, kept, torch.ones_like(kept), "released")
    torch.testing.assert_close(found, literal, rtol=0, atol=0)


def test_a_single_column_that_is_left_has_all_the_weight_both_ways() -> None:
    pattern = torch.softmax(torch.randn(1, 2, 1, 4), -1)
    kept = torch.tensor([[False, True, False, False]])
    for how in ("released", "renormalised"):
        assert reweighted(pattern, kept, torch.ones_like(kept), how)[0, :, 0].tolist() == [[0, 1, 0, 0]] * 2
