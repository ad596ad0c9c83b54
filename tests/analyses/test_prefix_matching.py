"""Prefix matching: patterns with known scores, plain loops over the library's own attention, and shards."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from analyses.splitting import assert_split_equals_whole
from models.tiny_models import KINDS, tiny

from repro.analyses import prefix_matching
from repro.analyses.induction_specs import PrefixMatching, PrefixOptions
from repro.analyses.prefix_matching import prefix_score
from repro.analyses.sequence_scores import places, sizes_of
from repro.data.token_sequences import Given, TokenSequence
from repro.errors import UserError

BLOCK, COPIES = 3, 4
ONE = TokenSequence((0, *((5, 9, 7) * COPIES)), 1, BLOCK)


def pattern(attention: dict[int, dict[int, float]]) -> torch.Tensor:
    found = torch.zeros(1, len(ONE.tokens), len(ONE.tokens))
    for query, keys in attention.items():
        for key, weight in keys.items():
            found[0, query, key] = weight
    return found


def scored(attention: dict[int, dict[int, float]], quirk: bool = True) -> float:
    return float(prefix_score(pattern(attention), ONE, quirk))


def test_a_head_that_attends_to_the_follower_one_copy_earlier_has_score_one() -> None:
    # Token j was last seen at j - 3, and followed there by j - 2.
    assert scored({query: {query - 2: 1.0} for query in range(4, 13)}) == 1.0


def test_attention_elsewhere_scores_nothing() -> None:
    """To the start token, itself, the same token one copy earlier, and the token before."""
    for step in (0, 3, 1):
        assert scored({query: {query - step: 1.0} for query in range(4, 13)}, quirk=False) == 0.0
    assert scored({query: {0: 1.0} for query in range(4, 13)}) == 0.0


def test_attention_within_the_first_copy_does_not_count() -> None:
    assert scored({query: {max(query - 2, 0): 1.0} for query in range(4)}) == 0.0


def test_followers_of_all_earlier_copies_count_together() -> None:
    # Token 10 stands first in the fourth copy; 2, 5 and 8 follow the first three.
    assert scored({10: {2: 0.25, 5: 0.25, 8: 0.5}}) == pytest.approx(1 / 9)


def test_position_1_counts_for_the_last_token_of_a_block_only_with_the_quirk() -> None:
    # Token 6 ends the second copy: its follower in the first is 4; 1 follows the start token alone.
    last = {query: {1: 1.0} for query in (6, 9, 12)}
    assert scored(last) == pytest.approx(3 / 9)
    assert scored(last, quirk=False) == 0.0
    assert scored({6: {4: 1.0}}, quirk=False) == pytest.approx(1 / 9)


def data(kind: str = "mixed") -> Given:
    rng, made = np.random.RandomState(3), []
    for block in (2, 3, 5, 7):
        made.append(TokenSequence((0, *(tuple(map(int, 2 + rng.permutation(50)[:block])) * 4)), 1, block))
    return Given(tuple(made), "test", "")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quirk", [True, False])
def test_scores_are_loops_over_the_librarys_attention(kind: str, quirk: bool) -> None:
    """The sheet's sum, term by term, over attentions that the library returns."""
    model, given = tiny(kind, dtype=torch.float64), data()
    found = prefix_matching.run(
        model, given, None, None, PrefixMatching(prefix=PrefixOptions(position1_quirk=quirk))
    )
    for number, one in enumerate(given.sequences):
        ids, length = torch.tensor([one.tokens]), one.block
        attentions = model.hf(input_ids=ids, output_attentions=True, use_cache=False).attentions
        for layer, attention in enumerate(attentions):
            for head in range(model.heads):
                total = 0.0
                for j in range(length + 1, 4 * length + 1):
                    for m in range(j // length):
                        key = m * length + j % length + 1
                        if quirk or key != 1:
                            total += float(attention[0, head, j, key])
                expected = total / (3 * length)
                assert found.arrays["per_sequence"].values[number, layer, head] == pytest.approx(
                    expected, abs=1e-12
                )
    values = found.arrays["per_sequence"].values
    assert list(found.arrays["per_sequence"].axes) == ["sequence", "layer", "head"]
    np.testing.assert_allclose(found.arrays["score"].values, values.mean(0))
    np.testing.assert_allclose(found.arrays["variance"].values, values.var(0, ddof=1))


def test_batches_and_order_change_nothing() -> None:
    model, given = tiny("opt", dtype=torch.float64), data()
    whole = prefix_matching.run(model, given, None, None, PrefixMatching()).arrays["per_sequence"].values
    batched = prefix_matching.run(model, given, None, None, PrefixMatching(batch=3))
    np.testing.assert_allclose(batched.arrays["per_sequence"].values, whole, atol=1e-12)
    turned = Given(given.sequences[::-1], "", "")
    found = prefix_matching.run(model, turned, None, None, PrefixMatching())
    np.testing.assert_allclose(found.arrays["per_sequence"].values[::-1], whole, atol=1e-15)


def test_shards_over_sequences_equal_the_whole(tmp_path: Path) -> None:
    assert_split_equals_whole(
        prefix_matching, tiny("opt"), data(), PrefixMatching(), 4, tmp_path, counts=(2, 3, 4)
    )


def test_sequences_that_do_not_fit_are_refused() -> None:
    model = tiny("opt")
    for tokens, said in (((0, *((5, 6, 7, 8, 9) * 7)), "36 tokens"), ((0, 99, 98, 99, 98), "token id 99")):
        given = Given((TokenSequence(tokens, 1, 5 if len(tokens) > 9 else 2),), "file", "")
        with pytest.raises(UserError, match=said):
            prefix_matching.run(model, given, None, None, PrefixMatching())
    with pytest.raises(UserError, match="data=induction_sequences"):
        prefix_matching.run(model, SimpleNamespace(), None, None, PrefixMatching())


def test_sizes_of_the_model() -> None:
    """OPT of width 24 and 40 hidden units: 4 (24 24 + 24) of attention, 2 24 40 + 24 + 40 of FFN a layer."""
    found = sizes_of(tiny("opt"))
    assert (found["heads"], found["ffns"]) == (12, 3)
    assert found["attention.billions"] * 1e9 == pytest.approx(3 * 4 * (24 * 24 + 24))
    assert found["ffn.billions"] * 1e9 == pytest.approx(3 * (2 * 24 * 40 + 24 + 40))
    # The published OPT-66B, by the same formulas.
    width, hidden = 9216, 36864
    assert 64 * 4 * (width**2 + width) / 1e9 == pytest.approx(21.7, abs=0.1)
    assert 64 * (2 * width * hidden + width + hidden) / 1e9 == pytest.approx(43.4, abs=0.1)


def test_places_of_high_scores() -> None:
    table = np.zeros((4, 5))
    table[2, 1], table[3, 4], table[0, 0] = 1.0, 0.8, 0.4
    found = places(table)
    assert found["max"] == 1 and (found["largest.layer"], found["largest.head"]) == (2, 1)
    assert (found["above_half.count"], found["above_half.share"]) == (2, 0.1)
    # 31+ of 64 layers is 1.9 and later of 4; 41+ is 2.5 and later: of the two highest, one.
    assert (found["later_half.above_half"], found["later_third.top_tenth"]) == (1.0, 0.5)
