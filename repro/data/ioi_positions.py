"""Prompts as token ids with the columns of their names, for any tokenizer.

A name's column is the number of tokens before it, found by encoding the text up to it; the token there
must be the name's own single token. So a tokenizer that would break this is refused, not misread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor

from repro.data.ioi_prompts import Prompt, PromptSet
from repro.data.token_batch import TokenBatch
from repro.data.word_tokenizer import WordTokenizer
from repro.errors import UserError

NEIGHBOURS = {"-1": -1, "+1": 1}


@dataclass(frozen=True)
class Tokenised:
    """Token ids, right-padded, with named columns, labels as ids, and template groups, row by row."""

    prompts: PromptSet
    batch: TokenBatch
    positions: Mapping[str, Int[Tensor, " row"]]
    answer: Int[Tensor, " row"]
    wrong: Int[Tensor, " row"]
    groups: Int[Tensor, " row"]


def tokenise(prompts: PromptSet, tokenizer: Any, bos: bool = False, target: bool = False) -> Tokenised:
    """Encode prompts with the model's own tokenizer (Hugging Face's, `tokenizers`' or `WordTokenizer`).

    bos: the start token first, which moves every column by one. target: the name that is due as last
    token; END stays the token before it. Columns: IO, S1, S2, each also with -1 and +1; END; START (0);
    PUNCT (the last full stop, or else the last comma); C, PLACE, OBJECT where all prompts have them; for
    prompts with three names also IO1 and IO2 (first clause), IO1+1 and S, as REMIX calls them.

    Raises `UserError` where a name, place or object of the prompts' word lists is not one token behind a
    space, where two have the same token, and where text up to a name encodes to other tokens than within
    the whole text.
    """
    ids = single_tokens(prompts, tokenizer)
    start = [start_token(tokenizer)] if bos else []
    rendered = [prompt.render() for prompt in prompts.prompts]
    cuts = [_cuts(text, spans) for text, spans in rendered]
    texts = {text[:cut] for (text, _), row in zip(rendered, cuts, strict=True) for cut in row.values()}
    texts |= {text for text, _ in rendered}
    encoded = _encode(tokenizer, sorted(texts))
    rows, columns = [], []
    for prompt, (text, _), cut in zip(prompts.prompts, rendered, cuts, strict=True):
        row = encoded[text]
        at = {key: _column(row, encoded[text[:place]], text, key) for key, place in cut.items()}
        _check_names(prompt, row, at, ids)
        at["END"] = len(row) - 1
        columns.append({key: column + len(start) for key, column in _all_columns(prompt, at).items()})
        rows.append([*start, *row, *([ids[prompt.final]] if target else [])])
    groups = {i: number for number, group in enumerate(prompts.groups.values()) for i in group}
    return Tokenised(
        prompts,
        TokenBatch.of(rows),
        _shared(columns),
        torch.tensor([ids[prompt.answer] for prompt in prompts.prompts]),
        torch.tensor([ids[prompt.wrong] for prompt in prompts.prompts]),
        torch.tensor([groups[i] for i in range(len(prompts))]),
    )


def single_tokens(prompts: PromptSet, tokenizer: Any) -> dict[str, int]:
    """The token of each name, place and object of the word lists and of the prompts, behind a space.

    Raises `UserError` that lists the words that are several tokens (or unknown), or share one.
    """
    words = dict.fromkeys(prompts.words.names)
    for slot, items in (("[PLACE]", prompts.words.places), ("[OBJECT]", prompts.words.objects)):
        if any(slot in template for template in prompts.groups):
            words |= dict.fromkeys(items)
    for prompt in prompts.prompts:
        # Words from elsewhere: animals, or records that were edited.
        words |= dict.fromkeys(filter(None, (prompt.io, prompt.s1, prompt.s2, prompt.c, prompt.final)))
    if isinstance(tokenizer, WordTokenizer):
        vocabulary = tokenizer.get_vocab()
        _refuse([f"{word} (unknown)" for word in words if word not in vocabulary], len(words))
    context = prompts.words.names[0]  # some tokenizers encode a leading space of a whole text differently
    encoded = _encode(tokenizer, [context, *(f"{context} {word}" for word in words)])
    before = len(encoded[context])
    tails = {word: encoded[f"{context} {word}"][before:] for word in words}
    unknown = [getattr(tokenizer, "unk_token_id", None)]
    split = [
        f"{word} (unknown)" if ids == unknown else f"{word} ({len(ids)} tokens)"
        for word, ids in tails.items()
        if len(ids) != 1 or ids == unknown
    ]
    _refuse(split, len(words))
    taken: dict[int, str] = {}
    for word, (token,) in tails.items():
        if taken.setdefault(token, word) != word:
            raise UserError(
                f"data: {taken[token]} and {word} are the same token of this model. Leave one out"
            )
    return {word: token for word, (token,) in tails.items()}


def _refuse(split: Sequence[str], total: int) -> None:
    """Refuse words that are not one token; `split` says of each what it is instead."""
    if split:
        raise UserError(
            "data: every name, place and object must be one token behind a space; with this model's"
            f" tokenizer {len(split)} of {total} are not: {', '.join(split[:12])}"
            f"{', ...' if len(split) > 12 else ''}. Give your own lists with data.words=FILE.json, e.g."
            ' {"names": ["Mary", ...], "places": [...], "objects": [...]}'
        )


def start_token(tokenizer: Any) -> int:
    """The id of the start token, or else of the end-of-text token. Raises `UserError` without both."""
    found = [getattr(tokenizer, name, None) for name in ("bos_token_id", "eos_token_id")]
    lookup = getattr(tokenizer, "token_to_id", lambda text: None)
    found += [lookup(text) for text in ("<|begin_of_text|>", "<s>", "<|endoftext|>", "</s>")]
    for token in found:
        if token is not None:
            return int(token)
    raise UserError("data.bos: this tokenizer has no start and no end-of-text token. Set data.bos=false")


def _encode(tokenizer: Any, texts: Sequence[str]) -> dict[str, list[int]]:
    """Token ids by text, without special tokens."""
    if tokenizer is None:
        raise UserError(
            "data: prompts are text and this model has no tokenizer. Put its tokenizer files into the model's"
            " folder, or give token ids with data=token_pairs data.path=PAIRS.json"
        )
    wanted = [text for text in texts if text]
    try:
        found = _ids(tokenizer, wanted)
    except Exception as error:
        if type(error) is not Exception:  # the tokenizers library raises Exception itself
            raise
        raise UserError(
            f"data: this model's tokenizer cannot encode {wanted[0]!r} and the like: {error}. Give words that"
            " it knows with data.words=FILE.json, or token ids with data=token_pairs data.path=PAIRS.json"
        ) from None
    return {"": [], **dict(zip(wanted, map(list, found), strict=True))}


def _ids(tokenizer: Any, texts: Sequence[str]) -> list[Sequence[int]]:
    if hasattr(tokenizer, "encode_batch"):
        return [each.ids for each in tokenizer.encode_batch(texts, add_special_tokens=False)]
    if callable(tokenizer):
        return cast(Any, tokenizer)(texts, add_special_tokens=False)["input_ids"]
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts]


def _cuts(text: str, spans: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """Where the text before each slot ends: before the space, which belongs to the slot's token."""
    cuts = {slot: start - (text[start - 1 : start] == " ") for slot, (start, _) in spans.items()}
    mark = max(text.rfind("."), -1) if "." in text else text.rfind(",")
    return {**cuts, "PUNCT": mark} if mark >= 0 else cuts


def _column(row: list[int], before: list[int], text: str, key: str) -> int:
    if row[: len(before)] != before:
        raise UserError(
            f"data: position {key}: this tokenizer encodes the beginning of {text!r} differently on its own"
            " and within the text, so positions cannot be found. Give token ids with data=token_pairs"
        )
    return len(before)


def _check_names(prompt: Prompt, row: list[int], at: Mapping[str, int], ids: Mapping[str, int]) -> None:
    for slot, word in (("IO", prompt.io), ("S1", prompt.s1), ("S2", prompt.s2)):
        if row[at[slot]] != ids[word]:
            raise UserError(
                f"data: {word} at {slot} of {prompt.text!r} is not its token behind a space. Names need a"
                " space before them: a template must not begin with a name"
            )


def _all_columns(prompt: Prompt, at: Mapping[str, int]) -> dict[str, int]:
    """The columns with their neighbours and, for three names, REMIX's keys."""
    columns = {"START": 0, **at}
    for slot in ("IO", "S1", "S2"):
        columns |= {f"{slot}{sign}": at[slot] + step for sign, step in NEIGHBOURS.items()}
    if prompt.is_abc:
        first, second = sorted((at["IO"], at["S1"]))
        columns |= {"IO1": first, "IO2": second, "IO1+1": first + 1, "S": at["S2"]}
    return {key: column for key, column in columns.items() if column >= 0}


def _shared(columns: Sequence[Mapping[str, int]]) -> dict[str, Tensor]:
    """One vector a key that all prompts have."""
    keys = [key for key in columns[0] if all(key in row for row in columns)]
    return {key: torch.tensor([row[key] for row in columns]) for key in keys}
