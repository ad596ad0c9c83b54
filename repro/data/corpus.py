"""Texts, and the blocks of tokens that they are cut into.

A text is a list of rows, lines that keep their line end; an empty row gives no tokens. No token is put
before, between or after them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from repro.data.corpus_sources import Sources, read
from repro.data.corpus_specs import Corpus
from repro.data.token_blocks import Blocks, TokenBlocks
from repro.errors import UserError

Encode = Callable[[list[str]], Sequence[Sequence[int]]]
AT_ONCE = 1000  # rows that the tokenizer gets at a time, which changes nothing


def load(spec: Corpus) -> Texts:
    """The texts of a spec. Raises `UserError` where files are missing, empty or no text."""
    return _loaded(type(spec), spec.model_dump_json())


@lru_cache(maxsize=1)
def _loaded(kind: type[Corpus], plain: str) -> Texts:
    """The last texts are kept: a run asks for them to pretrain, to tune, and to look at."""
    spec = kind.model_validate_json(plain)
    return Texts(spec, read(spec))


def group(rows: Iterable[Sequence[int]], length: int, batch: int | None) -> np.ndarray:
    """Blocks [block, length] of the token ids of rows.

    The ids of every `batch` rows (null: of all) are put together and cut into blocks; what is left at
    their end is dropped. Source: `group_texts` of Hugging Face's language modelling examples, mapped over
    batches of 1000 rows.
    """
    found = [np.zeros((0, length), np.int64)]
    for some in _batches(list(rows), batch):
        ids = np.fromiter((token for row in some for token in row), np.int64)
        count = len(ids) // length
        found.append(ids[: count * length].reshape(count, length))
    return np.concatenate(found)


def _batches(rows: list[Sequence[int]], size: int | None) -> Iterator[list[Sequence[int]]]:
    step = size or max(len(rows), 1)
    for begin in range(0, len(rows), step):
        yield rows[begin : begin + step]


def pooled(blocks: np.ndarray, train: int, query: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Blocks to train on, and queries: of the first train + query, shuffled, the first `query`."""
    if len(blocks) < train + query:
        raise too_few("train + data.query", train + query, len(blocks))
    order = np.random.default_rng(seed).permutation(train + query)
    return blocks[order[query:]], blocks[order[:query]]


def too_few(key: str, asked: int, found: int) -> UserError:
    """The message for a text that has fewer blocks than asked for."""
    return UserError(
        f"data.{key}: asked for {asked} blocks, and the text gives {found}. Ask for fewer, give a longer"
        " text, or shorter blocks (data.block)"
    )


@dataclass(frozen=True, eq=False)
class Texts:
    """Texts to train on, to ask about and to pretrain on, which a tokenizer makes blocks of."""

    spec: Corpus
    sources: Sources
    _made: list[tuple[Any, TokenBlocks, np.ndarray]] = field(default_factory=list)

    @property
    def source(self) -> str:
        """Where the texts come from, in words."""
        return self.sources.source

    @property
    def sha256(self) -> str:
        """Of all rows."""
        return self.sources.sha256

    @property
    def kind(self) -> str:
        """The kind of its spec."""
        return getattr(self.spec, "kind")  # noqa: B009

    @property
    def is_published(self) -> bool:
        """Whether it is WikiText-2, cut as published."""
        return self.sources.is_published

    @property
    def rows(self) -> list[str]:
        """All rows there are, to train a tokenizer on."""
        return [*self.sources.train, *(self.sources.query or []), *self.sources.pretraining]

    def blocks(self, tokenizer: Any = None) -> TokenBlocks:
        """Blocks to train on and queries, of a tokenizer as the library has it."""
        return self._cut(tokenizer)[0]

    def pretraining(self, tokenizer: Any) -> np.ndarray:
        """Blocks to pretrain on [block, position], none of which is trained on or asked about."""
        return self._cut(tokenizer)[1]

    def _cut(self, tokenizer: Any) -> tuple[TokenBlocks, np.ndarray]:
        for known, blocks, pretraining in self._made:
            if known is tokenizer:
                return blocks, pretraining
        if tokenizer is None:
            raise UserError(
                f"data: {self.source} is text, and the model has no tokenizer. Give a folder with"
                " tokenizer.json beside the weights, or token ids: data=token_blocks data.path=FILE"
            )
        import torch

        train, query, pretraining = self._arrays(lambda rows: encoded(tokenizer, rows))
        blocks = TokenBlocks(
            Blocks(torch.from_numpy(train)), Blocks(torch.from_numpy(query)), self.source, self.sha256,
            self.kind, self.is_published,
        )  # fmt: skip
        self._made.append((tokenizer, blocks, pretraining))
        return blocks, pretraining

    def _arrays(self, encode: Encode) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """train, query and pretraining blocks, [block, position] each."""
        spec, sources = self.spec, self.sources

        def cut(rows: list[str]) -> np.ndarray:
            return group(encode(rows), spec.block, spec.rows)

        train, pretraining = cut(sources.train), cut(sources.pretraining)
        if sources.query is None:
            assert spec.train is not None and spec.query is not None
            if not sources.pretraining:
                pretraining = train[spec.train + spec.query :]
            return *pooled(train, spec.train, spec.query, spec.seed), pretraining
        return (
            _first(train, "train", spec.train),
            _first(cut(sources.query), "query", spec.query),
            pretraining,
        )


def encoded(tokenizer: Any, rows: list[str]) -> list[list[int]]:
    """Token ids of every row, without special tokens."""
    found: list[list[int]] = []
    for begin in range(0, len(rows), AT_ONCE):
        some = rows[begin : begin + AT_ONCE]
        found.extend(tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"])
    return found


def _first(blocks: np.ndarray, key: str, count: int | None) -> np.ndarray:
    if len(blocks) < (count or 1):
        raise too_few(key, count or 1, len(blocks))
    return blocks[:count]
