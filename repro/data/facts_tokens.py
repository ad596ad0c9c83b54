"""Prompts about subjects as token ids, with the subject's tokens, for any tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from repro.data.facts_records import Fact
from repro.data.token_batch import TokenBatch
from repro.errors import UserError

SETS = ("subject", "non_subject", "last", "first_subject", "last_subject", "relation")
MORE_SETS = ("non_subject_and_last", "all", "none")


@dataclass(frozen=True)
class FactBatch:
    """Prompts as token ids, right-padded, row by row.

    start: column of the first token of the text (1 behind a start token, else 0). first, last: columns of
    the subject's first and last token. number: of each prompt in the data, from 0. attribute: the token that
    `attribute` begins with when it continues the prompt; -1 where the data names none.
    """

    batch: TokenBatch
    start: Int[Tensor, " row"]
    first: Int[Tensor, " row"]
    last: Int[Tensor, " row"]
    attribute: Int[Tensor, " row"]
    number: Int[Tensor, " row"]
    facts: tuple[Fact, ...]

    def __len__(self) -> int:
        return len(self.facts)

    @property
    def end(self) -> Int[Tensor, " row"]:
        """Column of the last token, which the answer follows."""
        return self.batch.last

    @property
    def subject_first(self) -> Bool[Tensor, " row"]:
        """Whether the text begins with the subject; a start token before it does not count."""
        return self.first == self.start

    def positions(self, name: str) -> Bool[Tensor, "row column"]:
        """Which columns belong to a set of positions. A set may be empty in a row.

        subject; non_subject: all others before the last position, start token included; last: the last
        position; first_subject, last_subject: one token; relation: non_subject without the start token;
        non_subject_and_last; all; none. Raises `UserError` for other names.
        """
        columns = torch.arange(self.batch.tokens.shape[1])[None]
        at, end = self.batch.mask, self.end[:, None]
        subject = (columns >= self.first[:, None]) & (columns <= self.last[:, None])
        others = at & ~subject & (columns != end)
        sets = {
            "subject": subject,
            "non_subject": others,
            "last": columns == end,
            "first_subject": columns == self.first[:, None],
            "last_subject": columns == self.last[:, None],
            "relation": others & (columns >= self.start[:, None]),
            "non_subject_and_last": at & ~subject,
            "all": at,
            "none": torch.zeros_like(at),
        }
        if name not in sets:
            raise UserError(f"set of positions: got {name!r}. Valid choices: {', '.join(SETS + MORE_SETS)}")
        return sets[name]

    def rows(self, index: Sequence[int] | Tensor) -> FactBatch:
        """The chosen prompts, in the order given."""
        chosen = torch.as_tensor(index)
        chosen = chosen.nonzero().flatten() if chosen.dtype == torch.bool else chosen.long()
        return FactBatch(
            self.batch.rows(chosen), self.start[chosen], self.first[chosen], self.last[chosen],
            self.attribute[chosen], self.number[chosen], tuple(self.facts[i] for i in chosen.tolist()),
        )  # fmt: skip

    def narrow(self) -> FactBatch:
        """The same without columns that are padding in every row."""
        width = int(self.end.max()) + 1
        batch = TokenBatch(self.batch.tokens[:, :width], self.batch.mask[:, :width])
        return FactBatch(
            batch, self.start, self.first, self.last, self.attribute, self.number, self.facts
        )  # fmt: skip

    def words(self, row: int, tokenizer: Any) -> list[str]:
        """The tokens of one prompt as texts, each decoded alone; their ids where there is no tokenizer."""
        ids = self.batch.tokens[row][self.batch.mask[row]].tolist()
        return [str(i) for i in ids] if tokenizer is None else [tokenizer.decode([i]) for i in ids]

    def agrees(self, answer: Int[Tensor, " row"], tokenizer: Any) -> list[bool | None]:
        """Whether each answer token, behind its prompt, is a beginning of the attribute (after a blank).

        None where the data names no attribute, or there is no tokenizer.
        """
        return [self._agrees(i, int(token), tokenizer) for i, token in enumerate(answer.tolist())]

    def _agrees(self, row: int, token: int, tokenizer: Any) -> bool | None:
        attribute = self.facts[row].attribute
        if attribute is None or tokenizer is None:
            return None
        ids = self.batch.tokens[row][self.batch.mask[row]].tolist()
        before, after = (tokenizer.decode(part) for part in (ids, [*ids, token]))
        if not after.startswith(before):
            return False
        # A letter that is not finished yet decodes to the replacement character.
        said = after[len(before) :].rstrip("\ufffd")
        return bool(said.strip()) and f" {attribute}".startswith(said)

    def check_vocabulary(self, size: int) -> None:
        """Refuse token ids that the model does not have. size: tokens of its vocabulary."""
        most = self.batch.tokens.max(dim=1).values
        for fact, token in zip(self.facts, most.tolist(), strict=True):
            if token >= size:
                raise UserError(
                    f"{fact.where}: token ids must lie between 0 and {size - 1}, the model's vocabulary; got"
                    f" {token}. Were they made with another model's tokenizer?"
                )


def tokenise(facts: Sequence[Fact], tokenizer: Any, bos: bool | None, ranges: str) -> FactBatch:
    """Token ids and subject ranges of prompts; see `Facts` in repro/data/fact_specs.py for bos and ranges.

    Raises `UserError`, with file and line, for texts without a (fast) tokenizer, a subject that cannot be
    found among the tokens or that reaches the last one, and for token ids that the text beside them is not
    encoded to.
    """
    encoded = [_encoded(fact, tokenizer, bos, ranges) for fact in facts]
    for fact, (ids, _, _, last) in zip(facts, encoded, strict=True):
        if last == len(ids) - 1:
            raise UserError(
                f"{fact.where}: the subject reaches the last token, where the answer is due; a prompt must go"
                f" on after it: {fact.prompt or list(ids)!r}"
            )
    rows, starts, firsts, lasts = zip(*encoded, strict=True)
    said = [attribute_token(fact, row, tokenizer, bos) for fact, row in zip(facts, rows, strict=True)]
    return FactBatch(
        TokenBatch.of(rows), torch.tensor(starts), torch.tensor(firsts), torch.tensor(lasts),
        torch.tensor(said), torch.arange(len(facts)), tuple(facts),
    )  # fmt: skip


def _encoded(fact: Fact, tokenizer: Any, bos: bool | None, ranges: str) -> tuple[list[int], int, int, int]:
    """Ids, column of the text's first token, and the subject's first and last column."""
    if fact.tokens is not None:
        assert fact.span is not None
        _same_tokenizer(fact, tokenizer, bos)
        start = int(bool(bos)) if bos is not None else _has_start(fact.tokens, tokenizer)
        return list(fact.tokens), start, fact.span[0], fact.span[1] - 1
    ids, start, offsets = encode(fact, tokenizer, bos)
    first, last = (
        _by_offsets(fact, offsets) if ranges == "offsets" else _released(fact, ids[start:], tokenizer)
    )
    return ids, start, first + start, last + start


def encode(fact: Fact, tokenizer: Any, bos: bool | None) -> tuple[list[int], int, list[tuple[int, int]]]:
    """Ids of the prompt, how many special ones come before it, and the characters of each of the others."""
    assert fact.prompt is not None
    if tokenizer is None:
        raise UserError(
            f"{fact.where}: texts need a tokenizer, and this model's folder has none. Give prompts as token"
            ' ids, {"tokens": [...], "subject": [start, end]}, or put tokenizer.json into the folder'
        )
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            "data: subject ranges need a fast tokenizer (tokenizer.json), which knows the characters of each"
            f" token; got {type(tokenizer).__name__}. Give prompts as token ids, or convert the tokenizer"
        )
    try:
        got: Mapping[str, Any] = tokenizer(
            fact.prompt, add_special_tokens=bos is not False, return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )  # fmt: skip
    except Exception as error:  # the tokenizers library raises Exception itself
        raise UserError(
            f"{fact.where}: this model's tokenizer cannot encode {fact.prompt!r}: {error}"
        ) from None
    special = list(got["special_tokens_mask"])
    real = [i for i, flag in enumerate(special) if not flag]
    before = [token for token in got["input_ids"][: real[0]]]
    if bos and not before:
        if tokenizer.bos_token_id is None:
            raise UserError("data.bos: this model's tokenizer has no start token. Give data.bos=false")
        before = [tokenizer.bos_token_id]
    ids = [got["input_ids"][i] for i in real]
    return [*before, *ids], len(before), [tuple(got["offset_mapping"][i]) for i in real]


def _by_offsets(fact: Fact, offsets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Tokens with a character of the subject: the first and the last."""
    begin, end = fact.characters
    inside = [i for i, (left, right) in enumerate(offsets) if left < end and right > begin]
    if not inside:
        raise UserError(f"{fact.where}: no token of {fact.prompt!r} has a character of {fact.subject!r}")
    return inside[0], inside[-1]


def _released(fact: Fact, ids: Sequence[int], tokenizer: Any) -> tuple[int, int]:
    """As in the released notebook: every token decoded alone, joined, and searched for the subject."""
    assert fact.subject is not None
    pieces = [tokenizer.decode([token]) for token in ids]
    if fact.subject not in "".join(pieces):
        raise UserError(
            f"{fact.where}: the subject {fact.subject!r} is not in the joined tokens {''.join(pieces)!r}, as"
            " in the released notebook. Give data.ranges=offsets"
        )
    begin = "".join(pieces).index(fact.subject)
    end, seen, first = begin + len(fact.subject), 0, None
    for i, piece in enumerate(pieces):
        seen += len(piece)
        if first is None and seen > begin:
            first = i
        if first is not None and seen >= end:
            return first, i
    raise AssertionError("the subject was found and then was not")


def attribute_token(fact: Fact, row: Sequence[int], tokenizer: Any, bos: bool | None) -> int:
    """The token behind the prompt when a blank and the attribute follow; -1 if unknown."""
    if fact.attribute is None or fact.prompt is None or tokenizer is None or fact.tokens is not None:
        return -1
    whole = tokenizer(f"{fact.prompt} {fact.attribute}", add_special_tokens=False)["input_ids"]
    text = tokenizer(fact.prompt, add_special_tokens=False)["input_ids"]
    return whole[len(text)] if list(whole[: len(text)]) == list(text) and len(whole) > len(text) else -1


def _has_start(tokens: Sequence[int], tokenizer: Any) -> int:
    return int(tokenizer is not None and tokenizer.bos_token_id is not None and
               tokens[0] == tokenizer.bos_token_id)  # fmt: skip


def _same_tokenizer(fact: Fact, tokenizer: Any, bos: bool | None) -> None:
    """Refuse ids beside a text that this tokenizer does not encode to them."""
    if fact.prompt is None or tokenizer is None or fact.tokens is None:
        return
    plain = tokenizer(fact.prompt, add_special_tokens=False)["input_ids"]
    start = _has_start(fact.tokens, tokenizer)
    if list(fact.tokens) != list(plain) and list(fact.tokens[start:]) != list(plain):
        raise UserError(
            f"{fact.where}: tokens and prompt disagree: this model's tokenizer gives {plain}, the record has"
            f" {list(fact.tokens)}. Were they made with another model's tokenizer? Leave out tokens or prompt"
        )
