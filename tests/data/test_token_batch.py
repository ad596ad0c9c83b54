"""Padding, positions and rows of token batches, against hand-written rectangles."""

from __future__ import annotations

import pytest
import torch

from repro.data.token_batch import TokenBatch
from repro.errors import UserError

ROWS = [[5, 6, 7], [8], [9, 10]]


def test_padding_on_either_side() -> None:
    right, left = TokenBatch.of(ROWS, 99), TokenBatch.of(ROWS, 99, side="left")
    assert right.tokens.tolist() == [[5, 6, 7], [8, 99, 99], [9, 10, 99]]
    assert left.tokens.tolist() == [[5, 6, 7], [99, 99, 8], [99, 9, 10]]
    assert right.position_ids.tolist() == [[0, 1, 2], [0, 0, 0], [0, 1, 1]]
    assert left.position_ids.tolist() == [[0, 1, 2], [0, 0, 0], [0, 0, 1]]
    assert right.last.tolist() == [2, 0, 1] and left.last.tolist() == [2, 2, 2]


def test_real_tokens_and_their_positions_do_not_depend_on_the_side() -> None:
    for batch in (TokenBatch.of(ROWS, 0), TokenBatch.of(ROWS, 0, side="left")):
        assert [row[keep].tolist() for row, keep in zip(batch.tokens, batch.mask, strict=True)] == ROWS
        places = [row[keep].tolist() for row, keep in zip(batch.position_ids, batch.mask, strict=True)]
        assert places == [[0, 1, 2], [0], [0, 1]]


@pytest.mark.parametrize("index", [[2, 0], torch.tensor([2, 0])])
def test_rows_are_taken_in_order(index: list[int] | torch.Tensor) -> None:
    assert TokenBatch.of(ROWS, 99).rows(index).tokens.tolist() == [[9, 10, 99], [5, 6, 7]]


def test_bad_batches_are_refused() -> None:
    ok = torch.ones(2, 3, dtype=torch.long)
    for tokens, mask in [(ok, torch.ones(2, 2, dtype=torch.bool)), (ok, ok), (ok.float(), ok.bool())]:
        with pytest.raises(UserError, match="token batch"):
            TokenBatch(tokens, mask)
    for rows in ([], [[1], []]):
        with pytest.raises(UserError, match="at least one"):
            TokenBatch.of(rows)
    with pytest.raises(UserError, match="Valid choices: left, right"):
        TokenBatch.of(ROWS, 0, side="middle")  # type: ignore[arg-type]
