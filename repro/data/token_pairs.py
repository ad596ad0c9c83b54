"""Clean and corrupt prompts side by side, with answers and named positions: what circuit analyses take.

They come from prompt sets (`repro/data/ioi.py`) or as plain token ids from the user's own JSON file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from repro.data.base_specs import sha256_of
from repro.data.text_specs import TokenPairs
from repro.data.token_batch import TokenBatch
from repro.errors import UserError

REQUIRED = ("clean", "corrupt", "answer", "wrong", "positions")
OPTIONAL = ("groups",)
EXAMPLE = (
    '{"clean": [[5, 3, 9]], "corrupt": [[5, 4, 9]], "answer": [3], "wrong": [4], "positions": {"END": 2}}'
)


@dataclass(frozen=True)
class PromptPairs:
    """Prompts and their corrupt twins, row by row. answer, wrong: token ids, one a row.

    positions: columns by name, one a row (END: where the answer is due). corrupt_positions: the same in
    the corrupt batch, where they differ. groups: rows with one number share a template.
    """

    clean: TokenBatch
    corrupt: TokenBatch
    answer: Int[Tensor, " row"]
    wrong: Int[Tensor, " row"]
    positions: Mapping[str, Int[Tensor, " row"]]
    corrupt_positions: Mapping[str, Int[Tensor, " row"]]
    groups: Int[Tensor, " row"]
    source: str
    sha256: str
    kind: str
    is_published: bool = False
    texts: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.clean)

    def pairs(self, tokenizer: Any = None) -> PromptPairs:
        """These pairs: token ids need no tokenizer. (Prompt sets have the same method.)"""
        return self

    def position(self, name: str) -> Int[Tensor, " row"]:
        """Columns of a named position, one a row. Raises `UserError` for an unknown name."""
        if name not in self.positions:
            raise UserError(f"position: got {name!r}. This data has: {', '.join(self.positions)}")
        return self.positions[name]

    def column(self, name: str) -> int:
        """The column of a named position that all rows share. Raises `UserError` where they differ."""
        columns = sorted(set(self.position(name).tolist()))
        if len(columns) > 1:
            raise UserError(
                f"position {name}: this analysis needs one column for all prompts; got columns {columns}."
                " Use prompts of one template (data.templates=[1] data.order=BABA)"
            )
        return columns[0]

    def require_aligned(self, names: Sequence[str] | None = None) -> None:
        """Refuse pairs whose twins differ in length, or in the named positions (all of them by default)."""
        lengths, others = self.clean.mask.sum(-1), self.corrupt.mask.sum(-1)
        if self.clean.tokens.shape != self.corrupt.tokens.shape or not torch.equal(lengths, others):
            row = next(iter((lengths != others).nonzero().flatten().tolist()), 0)
            raise UserError(
                f"data: clean and corrupt prompts must have the same length; prompt {row} has"
                f" {int(lengths[row])} and {int(others[row])} tokens. Choose a corruption that keeps"
                " positions, e.g. data.corruption=[ABC]"
            )
        for name in self.positions if names is None else names:
            here, there = self.position(name), self.corrupt_positions[name]
            if not torch.equal(here, there):
                row = int((here != there).nonzero()[0])
                raise UserError(
                    f"position {name}: clean and corrupt must have it in the same column; prompt {row} has"
                    f" {int(here[row])} and {int(there[row])}. Choose a corruption that keeps positions,"
                    " e.g. data.corruption=[ABC]"
                )

    def check_vocabulary(self, size: int) -> None:
        """Refuse token ids that the model does not have. size: tokens of its vocabulary."""
        parts = {"clean": self.clean.tokens, "corrupt": self.corrupt.tokens}
        for name, ids in {**parts, "answer": self.answer, "wrong": self.wrong}.items():
            if int(ids.max()) >= size or int(ids.min()) < 0:
                bad = sorted({i for i in ids.flatten().tolist() if not 0 <= i < size})[:5]
                raise UserError(
                    f"data: {name}: token ids must lie between 0 and {size - 1}, the model's vocabulary;"
                    f" got {', '.join(map(str, bad))}. Were they made with another model's tokenizer?"
                )

    def rows(self, index: Sequence[int] | Tensor) -> PromptPairs:
        """The chosen prompts, in the order given."""
        chosen = torch.as_tensor(index)
        chosen = chosen.nonzero().flatten() if chosen.dtype == torch.bool else chosen.long()
        texts = None if self.texts is None else tuple(self.texts[i] for i in chosen.tolist())
        return replace(
            self,
            clean=self.clean.rows(chosen),
            corrupt=self.corrupt.rows(chosen),
            answer=self.answer[chosen],
            wrong=self.wrong[chosen],
            positions={name: at[chosen] for name, at in self.positions.items()},
            corrupt_positions={name: at[chosen] for name, at in self.corrupt_positions.items()},
            groups=self.groups[chosen],
            texts=texts,
        )


def load(spec: TokenPairs) -> PromptPairs:
    """Pairs from the user's JSON file. Rows may differ in length; twins may not.

    Raises `UserError` for a missing file, for anything that is not JSON of the documented form, and for
    rows, answers and positions that do not fit together, naming the key and the row.
    """
    assert spec.path is not None
    path = Path(spec.path).expanduser()
    checksum = sha256_of(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"data.path: {path}: expected JSON like {EXAMPLE}; got {error}") from None
    return from_mapping(found, str(path), checksum)


def from_mapping(found: Any, source: str, sha256: str) -> PromptPairs:
    """Pairs from the content of such a file; `source` names it in messages."""
    keys = [*REQUIRED, *OPTIONAL]
    if not isinstance(found, Mapping):
        raise UserError(f"{source}: expected a mapping like {EXAMPLE}; got {type(found).__name__}")
    missing, unknown = set(REQUIRED) - set(found), set(found) - set(keys)
    if missing or unknown:
        raise UserError(
            f"{source}: expected the keys {', '.join(keys)} (the last is optional);"
            f" missing: {', '.join(sorted(missing)) or 'none'};"
            f" unknown: {', '.join(sorted(map(str, unknown))) or 'none'}. Write e.g. {EXAMPLE}"
        )
    clean, corrupt = (_rows(found[key], f"{source}: {key}") for key in ("clean", "corrupt"))
    lengths = [len(row) for row in clean]
    _check_twins(lengths, [len(row) for row in corrupt], source)
    answer, wrong = (_column(found[key], f"{source}: {key}", len(clean)) for key in ("answer", "wrong"))
    same = [i for i in range(len(clean)) if answer[i] == wrong[i]]
    if same:
        raise UserError(
            f"{source}: answer and wrong must differ, or their logit difference is 0; they are equal in"
            f" prompts {same[:5]} (from 0)"
        )
    positions = _positions(found["positions"], lengths, f"{source}: positions")
    groups = _column(found.get("groups", [0] * len(clean)), f"{source}: groups", len(clean))
    return PromptPairs(
        TokenBatch.of(clean), TokenBatch.of(corrupt), torch.tensor(answer), torch.tensor(wrong), positions,
        positions, torch.tensor(groups), source, sha256, "token_pairs",
    )  # fmt: skip


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _rows(value: Any, where: str) -> list[list[int]]:
    if not isinstance(value, list) or not value or not all(isinstance(row, list) and row for row in value):
        raise UserError(f"{where}: expected a list of lists of token ids, none empty; got {_short(value)}")
    for i, row in enumerate(value):
        bad = [item for item in row if not _is_id(item)]
        if bad:
            raise UserError(
                f"{where}: prompt {i}: token ids are integers of at least 0; got {_short(bad[0])}"
            )
    return value


def _column(value: Any, where: str, count: int) -> list[int]:
    """One integer of at least 0 for each prompt."""
    if not isinstance(value, list) or not all(map(_is_id, value)):
        raise UserError(f"{where}: expected a list of integers of at least 0; got {_short(value)}")
    if len(value) != count:
        raise UserError(f"{where}: expected one number a prompt, {count} in all; got {len(value)}")
    return value


def _check_twins(clean: list[int], corrupt: list[int], source: str) -> None:
    if len(clean) != len(corrupt):
        raise UserError(
            f"{source}: clean and corrupt must hold the same number of prompts;"
            f" got {len(clean)} and {len(corrupt)}"
        )
    differ = [i for i, (one, other) in enumerate(zip(clean, corrupt, strict=True)) if one != other]
    if differ:
        i = differ[0]
        raise UserError(
            f"{source}: each clean prompt and its corrupt twin must have the same length; prompt {i} has"
            f" {clean[i]} and {corrupt[i]} tokens"
        )


def _positions(value: Any, lengths: list[int], where: str) -> dict[str, Tensor]:
    if not isinstance(value, Mapping) or "END" not in value:
        raise UserError(
            f"{where}: expected names with columns, END among them (where the answer is due);"
            f' got {_short(value)}. Write e.g. {{"END": 14, "S2": 10}}'
        )
    positions = {}
    for name, given in value.items():
        per_row = (
            [given] * len(lengths) if _is_id(given) else _column(given, f"{where}: {name}", len(lengths))
        )
        outside = [i for i, (at, length) in enumerate(zip(per_row, lengths, strict=True)) if at >= length]
        if outside:
            i = outside[0]
            raise UserError(
                f"{where}: {name}: prompt {i} has {lengths[i]} tokens, so columns 0 to {lengths[i] - 1};"
                f" got {per_row[i]}"
            )
        positions[str(name)] = torch.tensor(per_row)
    return positions


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
