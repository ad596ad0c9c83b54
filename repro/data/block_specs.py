"""Blocks of token ids for influence functions: the typed config. Imports no PyTorch."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

from repro.data.base_specs import Data, sha256_of
from repro.errors import UserError


class TokenBlocksFile(Data):
    """The user's own blocks of token ids: a safetensors file.

    Tensors: train [n, T] and query [q, T], integers. Optional: train_mask, query_mask [same shapes], 0 or
    False where a token is padding; fisher_labels [n, T - 1], the labels to fit factors with
    (analysis.fisher=given).
    """

    module: ClassVar[str] = "repro.data.token_blocks"
    kind: Literal["token_blocks"] = "token_blocks"
    path: str | None = None

    @model_validator(mode="after")
    def _given(self) -> Self:
        if not self.path:
            raise UserError("data.path: a file is required. Give it with data.path=BLOCKS.safetensors")
        return self

    def fingerprint(self) -> dict[str, Any]:
        assert self.path is not None
        return self._without_places(sha256_of(self.path))
