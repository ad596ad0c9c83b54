"""Tokens as words: which count for an attributes rate, and which occur in a subject's paragraphs.

Source: the released notebook of Geva et al. 2023, arXiv 2304.14767. Every token is decoded alone and compared
as it is, leading blank and case included. Stop words are the 179 of NLTK's English list, as bm25s brings it.
Without a tokenizer a token is its id: all count, since nothing tells which are stop words or short.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from repro.data.paragraphs import IDS, without_jax
from repro.errors import UserError


@cache
def stop_words() -> frozenset[str]:
    """NLTK's English stop words of 2023, of which bm25s has a copy; nothing is downloaded."""
    with without_jax():
        from bm25s.stopwords import STOPWORDS_EN_PLUS
    return frozenset(STOPWORDS_EN_PLUS)


class Words:
    """The whole vocabulary decoded once, as arrays: a rate needs no decoding any more.

    texts [V]; string: number of each token's text [V], the same for equal texts; strings: how many there are.
    counted: whether a token counts among a vector's top tokens (stop words by lower case); contextual:
    whether it counts in a paragraph (stop words as written). Both: at least `min_length` letters without
    blanks. Without a tokenizer texts are ids, and all of them count.
    """

    def __init__(self, tokenizer: Any, size: int, min_length: int = 3) -> None:
        self.tokenizer, self.size = tokenizer, size
        if tokenizer is None:
            self.texts, self.string, self.strings = [str(i) for i in range(size)], torch.arange(size), size
            self.counted = self.contextual = torch.ones(size, dtype=torch.bool)
            return
        self.texts = [tokenizer.decode([i]) for i in range(size)]
        numbers: dict[str, int] = {}
        self.string = torch.tensor([numbers.setdefault(text, len(numbers)) for text in self.texts])
        self.strings = len(numbers)
        stop, bare = stop_words(), [text.strip() for text in self.texts]
        self.counted = torch.tensor([len(t) >= min_length and t.lower() not in stop for t in bare])
        self.contextual = torch.tensor([len(t) >= min_length and t not in stop for t in bare])

    def context(self, content: str | Sequence[int]) -> Tensor:
        """Numbers of the strings that count in a subject's paragraphs (text or token ids), each once."""
        if isinstance(content, str):
            if self.tokenizer is None:
                raise UserError(
                    "analysis.paragraphs: they are texts, and this model's folder has no tokenizer. Give them"
                    f" as token ids, {IDS} a line, or put tokenizer.json into the folder"
                )
            content = self.tokenizer(content, add_special_tokens=False)["input_ids"]
        ids = torch.tensor(list(content), dtype=torch.long).unique()
        if len(ids) and int(ids[-1]) >= self.size:
            raise UserError(
                f"analysis.paragraphs: token ids must lie between 0 and {self.size - 1}, the model's"
                f" vocabulary; got {int(ids[-1])}. Were they made with another model's tokenizer?"
            )
        return self.string[ids[self.contextual[ids]]].unique()


def rates(words: Words, ids: Tensor, member: Tensor, top: int) -> Tensor:
    """Attributes rate of each row in percent: 100 |first `top` that count, and are in context| / their
    number.

    ids: each vector's tokens, best first [N, pool]. member: whether a string is in the row's context [N, S].
    A text that two tokens share counts once. 0 where no token counts.
    """
    counted = words.counted[ids]
    taken = counted & (counted.cumsum(-1) <= top)
    string = words.string[ids]
    hit = torch.where(taken & member.gather(1, string), string, -1).sort(dim=-1).values
    new = torch.ones_like(hit, dtype=torch.bool)
    new[:, 1:] = hit[:, 1:] != hit[:, :-1]
    found = (new & (hit >= 0)).sum(-1)
    return 100.0 * found.double() / taken.sum(-1).clamp(min=1)
