"""A tokenizer of whole words over a fixed list: for models that are trained here on small worlds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from repro.errors import UserError

_PIECES = re.compile(r"<[^<>\s]+>|\w+|[^\w\s]")


@dataclass(frozen=True)
class WordTokenizer:
    """Ids are places in `words`; the first word is the start token, which also pads.

    Text is cut into words and single marks of punctuation; spaces carry nothing.
    """

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(set(self.words)) != len(self.words):
            raise UserError("word tokenizer: every word once; the list has repeats")

    bos_token_id = 0
    pad_token_id = 0
    eos_token_id = None

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Ids of the words of `text`. Raises `UserError` that names the words it does not know."""
        pieces = _PIECES.findall(text)
        unknown = sorted({piece for piece in pieces if piece not in self._ids})
        if unknown:
            raise UserError(
                f"this model's vocabulary has {len(self)} words and does not know: {', '.join(unknown)}."
                f" It knows e.g. {', '.join(self.words[1:9])}"
            )
        ids = [self._ids[piece] for piece in pieces]
        return [self.bos_token_id, *ids] if add_special_tokens else ids

    def decode(self, ids: Iterable[int]) -> str:
        """The words with spaces between them, none before a full stop or comma."""
        return re.sub(r" ([.,])", r"\1", " ".join(self.convert_ids_to_tokens(list(ids))))

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """The word of each id."""
        return [self.words[int(i)] for i in ids]

    def get_vocab(self) -> dict[str, int]:
        """Ids by word."""
        return dict(self._ids)

    def save(self, path: str | Path) -> None:
        """Write the list of words as JSON."""
        Path(path).write_text(json.dumps(list(self.words)), encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> WordTokenizer:
        """A tokenizer that `save` wrote."""
        return cls(tuple(json.loads(Path(path).read_text(encoding="utf-8"))))
