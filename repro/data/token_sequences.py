"""Sequences on which induction and copying are read: drawn for a tokenizer, or the user's own.

Source: Bansal et al. 2023, arXiv 2212.09095, section on induction heads, and its released code: distinct
tokens of the middle 92 % of the merges (in their order, a proxy of frequency), behind one start token.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from repro.data.base_specs import sha256_of
from repro.data.facts_records import objects
from repro.data.token_sequence_specs import InductionSequences, TokenSequences
from repro.errors import UserError

Ids = tuple[int, ...]


@dataclass(frozen=True)
class TokenSequence:
    """Token ids. start: columns before the first copy of a block of `block` tokens (0: no repeats)."""

    tokens: Ids
    start: int
    block: int = 0


@dataclass(frozen=True)
class Generated:
    """The recipe of random sequences; `repeated` and `distinct` draw them for a model."""

    spec: InductionSequences
    source: str
    sha256: str
    kind: str = "induction_sequences"
    is_published: bool = True

    def repeated(self, model: Any) -> list[TokenSequence]:
        """Copies of blocks of different tokens, for prefix matching."""
        start, copies = self._start(model), self.spec.repeats
        return [
            TokenSequence((*start, *(block * copies)), len(start), len(block))
            for block in self._drawn(model, self.spec.lengths)
        ]

    def distinct(self, model: Any) -> list[TokenSequence]:
        """As many tokens, all different, for copying."""
        start = self._start(model)
        lengths = [length * self.spec.repeats for length in self.spec.lengths]
        return [TokenSequence((*start, *ids), len(start)) for ids in self._drawn(model, lengths)]

    def _drawn(self, model: Any, lengths: Sequence[int]) -> Iterator[Ids]:
        candidates = self._candidates(model)
        if max(lengths) > len(candidates):
            raise UserError(
                f"data: {max(lengths)} different tokens are needed, and {len(candidates)} can be drawn."
                " Give fewer or shorter sequences (data.count, data.first, data.step)"
            )
        rng = np.random.RandomState(self.spec.seed)
        for length in lengths:
            yield tuple(int(one) for one in rng.choice(candidates, length, replace=False))

    def _candidates(self, model: Any) -> np.ndarray:
        ids = merged_tokens(model.tokenizer) if self.spec.vocabulary == "merges" else []
        if not ids:
            known = model.tokenizer is not None
            special = set(model.tokenizer.all_special_ids) if known else set()
            size = min(len(model.tokenizer), model.vocabulary) if known else model.vocabulary
            ids = [one for one in range(size) if one not in special and one != self.spec.bos]
        left_out = int(self.spec.excluded * len(ids))
        return np.array(ids[left_out : len(ids) - left_out])

    def _start(self, model: Any) -> Ids:
        start = self.spec.bos
        if start is None and model.tokenizer is not None:
            start = model.tokenizer.bos_token_id
        if start is not None and start >= model.vocabulary:
            raise UserError(f"data.bos: got {start}. This model has ids 0 to {model.vocabulary - 1}")
        return () if start is None else (start,)


@dataclass(frozen=True)
class Given:
    """The user's own sequences."""

    sequences: tuple[TokenSequence, ...]
    source: str
    sha256: str
    kind: str = "token_sequences"
    is_published: bool = False

    def repeated(self, model: Any) -> list[TokenSequence]:
        """The sequences. Raises `UserError` where nothing is repeated."""
        for number, one in enumerate(self.sequences):
            if not one.block:
                raise UserError(
                    f"{self.source}, sequence {number}: prefix matching needs a block that is repeated, and"
                    " there is no period in these ids. Give two copies or more, with at most one id before"
                    ' them, and the length of the block: {"tokens": [...], "block": 25}'
                )
        return list(self.sequences)

    def distinct(self, model: Any) -> list[TokenSequence]:
        """The sequences, whatever is repeated in them."""
        return list(self.sequences)


def load(spec: InductionSequences | TokenSequences) -> Generated | Given:
    """The recipe, or the sequences of a file. Raises `UserError` naming the sequence that does not fit."""
    if isinstance(spec, TokenSequences):
        assert spec.path is not None
        return Given(tuple(_read(Path(spec.path).expanduser())), Path(spec.path).name, sha256_of(spec.path))
    settings = json.dumps(spec.model_dump(mode="json"), sort_keys=True)
    source = f"{spec.count} sequences of {spec.lengths[0]} to {spec.lengths[-1]} tokens, seed {spec.seed}"
    return Generated(spec, source, hashlib.sha256(settings.encode()).hexdigest())


def merged_tokens(tokenizer: Any) -> list[int]:
    """Ids of the tokens that byte-pair merges make, in order of the merges; empty for other tokenizers."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return []
    model = json.loads(backend.to_str())["model"]
    merges, vocabulary = model.get("merges") or [], model.get("vocab")
    if not merges or not isinstance(vocabulary, Mapping):
        return []
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    ids = [vocabulary[first + second] for first, second in pairs if first + second in vocabulary]
    return list(dict.fromkeys(ids))  # two merges may make one token


def period(tokens: Sequence[int]) -> int:
    """The smallest p with tokens[i] = tokens[i - p] for all i >= p that has two copies or more; 0: none."""
    ids = np.asarray(tokens)
    for length in range(1, len(ids) // 2 + 1):
        if bool((ids[length:] == ids[:-length]).all()):
            return length
    return 0


def _read(path: Path) -> list[TokenSequence]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.path: cannot read {path}: {error}") from None
    items: list[Any] = [item for _, item in objects(text, str(path))]
    common: dict[str, Any] = {}
    if len(items) == 1 and isinstance(items[0], dict):
        common = dict(items[0])
        many = common.pop("sequences", None) or common.get("tokens")
        if isinstance(many, list) and many and isinstance(many[0], list | dict):
            common.pop("tokens", None)
            items = many
        else:
            common = {}
    if not items:
        raise UserError(f"{path}: expected at least one sequence, and there is none")
    return [_sequence(item, common, f"{path}, sequence {number}") for number, item in enumerate(items)]


def _sequence(item: Any, common: Mapping[str, Any], where: str) -> TokenSequence:
    given = {**common, **(item if isinstance(item, dict) else {"tokens": item})}
    listed, start, block = given.get("tokens"), given.get("start"), given.get("block")
    if not isinstance(listed, list) or len(listed) < 2 or not all(map(_is_id, listed)):
        raise UserError(
            f'{where}: expected two token ids or more, [2, 17, 4] or {{"tokens": [...], "block": 25}}; got'
            f" {json.dumps(item)[:80]}"
        )
    tokens: Ids = tuple(listed)
    if start not in (None, 0, 1):
        raise UserError(f"{where}: start: expected 0 or 1, the columns before the first copy; got {start!r}")
    if block is None:
        return _inferred(tokens, start)
    if not _is_id(block) or block < 1:
        raise UserError(f"{where}: block: expected the tokens of one copy, at least 1; got {block!r}")
    # Whole copies first: where they begin is then known from the length.
    likely = (0, 1) if len(tokens) % block == 0 else (1, 0)
    for begin in likely if start is None else (start,):
        body = np.asarray(tokens[begin:])
        if len(body) >= 2 * block and bool((body[block:] == body[:-block]).all()):
            return TokenSequence(tokens, begin, block)
    raise UserError(
        f"{where}: expected two copies or more of {block} tokens, behind at most one other; these"
        f" {len(tokens)} tokens do not repeat so"
    )


def _inferred(tokens: Ids, start: int | None) -> TokenSequence:
    """With the smallest period, of all tokens or of those behind the first."""
    for begin in (0, 1) if start is None else (start,):
        found = period(tokens[begin:])
        if found:
            return TokenSequence(tokens, begin, found)
    return TokenSequence(tokens, 1 if start is None else start)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
