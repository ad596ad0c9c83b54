"""Token ids of several texts as one rectangle, with a mask that says which ids are real."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from repro.errors import UserError

Side = Literal["left", "right"]


@dataclass(frozen=True)
class TokenBatch:
    """Token ids, padded on either side. mask: True where a token is real. Both are (row, column)."""

    tokens: Int[Tensor, "row column"]
    mask: Bool[Tensor, "row column"]

    def __post_init__(self) -> None:
        if self.tokens.ndim != 2 or self.tokens.shape != self.mask.shape:
            raise UserError(
                "token batch: tokens and mask must have one shape (row, column);"
                f" got {tuple(self.tokens.shape)} and {tuple(self.mask.shape)}"
            )
        floats = self.tokens.is_floating_point() or self.tokens.dtype == torch.bool
        if floats or self.mask.dtype != torch.bool:
            raise UserError(
                "token batch: tokens must be integers and the mask booleans;"
                f" got {self.tokens.dtype} and {self.mask.dtype}"
            )

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], pad_id: int = 0, side: Side = "right") -> Self:
        """Rows of any length, padded with `pad_id` to the longest on `side`.

        Raises `UserError` without rows, for an empty row and for an unknown side.
        """
        if side not in ("left", "right"):
            raise UserError(f"padding side: got {side!r}. Valid choices: left, right")
        if not rows or any(len(row) == 0 for row in rows):
            raise UserError("token batch: expected at least one row, and at least one token in every row")
        width = max(len(row) for row in rows)
        tokens = torch.full((len(rows), width), pad_id, dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.bool)
        for i, row in enumerate(rows):
            columns = slice(width - len(row), width) if side == "left" else slice(0, len(row))
            tokens[i, columns] = torch.as_tensor(row, dtype=torch.long)
            mask[i, columns] = True
        return cls(tokens, mask)

    @property
    def position_ids(self) -> Int[Tensor, "row column"]:
        """Place of each token among the real tokens of its row, from 0; 0 on padding before the first."""
        return (self.mask.long().cumsum(dim=-1) - 1).clamp(min=0)

    @property
    def last(self) -> Int[Tensor, " row"]:
        """Column of the last real token of each row; -1 in a row of padding only."""
        columns = torch.arange(self.mask.shape[1], device=self.mask.device)
        return torch.where(self.mask, columns, -1).max(dim=-1).values

    def rows(self, index: Sequence[int] | slice | Tensor) -> TokenBatch:
        """The chosen rows, in the order given."""
        chosen = index if isinstance(index, slice | Tensor) else list(index)
        return TokenBatch(self.tokens[chosen], self.mask[chosen])

    def to(self, device: torch.device | str) -> TokenBatch:
        """The same batch on another device."""
        return TokenBatch(self.tokens.to(device), self.mask.to(device))

    def __len__(self) -> int:
        return self.tokens.shape[0]
