"""Blocks: equally long sequences of token ids, those a model was trained on and those it is asked about.

Influence functions take them. They come from the user's safetensors file, or from texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from repro.data.base_specs import sha256_of
from repro.data.block_specs import TokenBlocksFile
from repro.errors import UserError

REQUIRED = ("train", "query")
OPTIONAL = ("train_mask", "query_mask", "fisher_labels")
PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".npy", ".npz")


@dataclass(frozen=True)
class Blocks:
    """Equally long sequences.

    mask: True where a token is real; None: everywhere. labels: for the next token of every position but the
    last, given from outside, to fit factors with.
    """

    tokens: Int[Tensor, "block position"]
    mask: Bool[Tensor, "block position"] | None = None
    labels: Int[Tensor, "block label"] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def length(self) -> int:
        """Tokens of a block, T."""
        return self.tokens.shape[1]

    def rows(self, index: Any) -> Blocks:
        """The chosen blocks, in the order given."""
        mask = None if self.mask is None else self.mask[index]
        return Blocks(self.tokens[index], mask, None if self.labels is None else self.labels[index])


@dataclass(frozen=True)
class TokenBlocks:
    """Blocks trained on, and blocks asked about."""

    train: Blocks
    query: Blocks
    source: str
    sha256: str
    kind: str
    is_published: bool = False

    def blocks(self, tokenizer: Any = None) -> TokenBlocks:
        """These blocks: token ids need no tokenizer. (Texts have the same method.)"""
        return self

    def check_vocabulary(self, size: int) -> None:
        """Refuse token ids that the model does not have. size: tokens of its vocabulary."""
        labels = {} if self.train.labels is None else {"fisher_labels": self.train.labels}
        for name, ids in {"train": self.train.tokens, "query": self.query.tokens, **labels}.items():
            if int(ids.max()) >= size:
                raise UserError(
                    f"data: {name}: token ids must lie between 0 and {size - 1}, the model's vocabulary; got"
                    f" {int(ids.max())}. Were they made with another model's tokenizer?"
                )


def load(spec: TokenBlocksFile) -> TokenBlocks:
    """Blocks from the user's file. Raises `UserError` for anything that is not of the documented form."""
    assert spec.path is not None
    path = Path(spec.path).expanduser()
    checksum = sha256_of(path)
    if path.suffix in PICKLES:
        raise UserError(
            f"data.path: {path}: expected a safetensors file, got {path.suffix}, which can hold a pickle that"
            " runs anything when it is read. Write safetensors.torch.save_file({'train': ..., 'query': ...},"
            " 'BLOCKS.safetensors')"
        )
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"data.path: {path}: no safetensors file ({error}). Write one with safetensors.torch.save_file"
        ) from None
    return from_tensors(found, str(path), checksum)


def from_tensors(found: Mapping[str, Tensor], source: str, sha256: str) -> TokenBlocks:
    """Blocks from the content of such a file; `source` names it in messages."""
    missing, unknown = set(REQUIRED) - set(found), set(found) - {*REQUIRED, *OPTIONAL}
    if missing or unknown:
        raise UserError(
            f"{source}: expected the tensors {', '.join(REQUIRED)} (optional: {', '.join(OPTIONAL)});"
            f" missing: {', '.join(sorted(missing)) or 'none'}; unknown:"
            f" {', '.join(sorted(unknown)) or 'none'}"
        )
    parts = {name: _blocks(found, name, source) for name in REQUIRED}
    lengths = {name: part.length for name, part in parts.items()}
    if lengths["train"] != lengths["query"] and not all(f"{name}_mask" in found for name in REQUIRED):
        raise UserError(
            f"{source}: train has blocks of {lengths['train']} tokens, query of {lengths['query']}. Cut them"
            " to one length, or pad them and give train_mask and query_mask (0 where a token is padding)"
        )
    labels = found.get("fisher_labels")
    if labels is not None:
        _check_ids(labels, "fisher_labels", source)
        expected = (len(parts["train"]), lengths["train"] - 1)
        if tuple(labels.shape) != expected:
            raise UserError(
                f"{source}: fisher_labels: expected the shape {expected}, one label for the next token of"
                f" every position of train but the last; got {tuple(labels.shape)}"
            )
    train = Blocks(parts["train"].tokens, parts["train"].mask, None if labels is None else labels.long())
    return TokenBlocks(train, parts["query"], source, sha256, "token_blocks")


def _blocks(found: Mapping[str, Tensor], name: str, source: str) -> Blocks:
    tokens, mask = found[name], found.get(f"{name}_mask")
    if tokens.ndim != 2 or tokens.shape[0] == 0 or tokens.shape[1] < 2:
        raise UserError(
            f"{source}: {name}: expected token ids [blocks, tokens], at least one block of at least two"
            f" tokens; got the shape {tuple(tokens.shape)}"
        )
    if mask is None:
        _check_ids(tokens, name, source)
        return Blocks(tokens.long())
    real = mask != 0
    if real.shape != tokens.shape or not bool(real.any(1).all()):
        raise UserError(
            f"{source}: {name}_mask: expected the shape of {name}, {tuple(tokens.shape)}, and a real token in"
            f" every block; got the shape {tuple(mask.shape)}"
        )
    tokens = torch.where(real, tokens, 0)  # whatever stands for padding, it is a token of the model
    _check_ids(tokens, name, source)
    return Blocks(tokens.long(), None if bool(real.all()) else real)


def _check_ids(ids: Tensor, name: str, source: str) -> None:
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise UserError(f"{source}: {name}: expected whole numbers (int64), got {ids.dtype}")
    if int(ids.min()) < 0:
        raise UserError(
            f"{source}: {name}: got the token id {int(ids.min())}. Blocks of unequal length are padded with"
            f" any token, and a mask says where: give {name.split('_')[0]}_mask (0 where a token is padding)"
        )
