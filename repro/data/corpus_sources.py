"""Where texts come from: made-up articles, WikiText, files of the user."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path
from typing import Any

from repro.data.articles import articles
from repro.data.corpus_specs import ROWS, Articles, Corpus, Split, TextFiles, Wikitext
from repro.errors import UserError

# What a split may be called where it is a file: as distributed, as in PyTorch's examples, as on the hub.
_FILES: dict[Split, tuple[str, ...]] = {
    "train": ("wiki.train.raw", "train.txt", "train-*.parquet"),
    "validation": ("wiki.valid.raw", "valid.txt", "validation.txt", "validation-*.parquet"),
    "test": ("wiki.test.raw", "test.txt", "test-*.parquet"),
}
PUBLISHED_ROWS = {"train": 36_718, "validation": 3_760}


@dataclass(frozen=True)
class Sources:
    """Rows to train on, to ask about (None: a part of those), and to pretrain on (empty: none)."""

    train: list[str]
    query: list[str] | None
    pretraining: list[str]
    source: str
    is_published: bool = False

    @property
    def sha256(self) -> str:
        """Of all rows, in their order."""
        digest = hashlib.sha256()
        for rows in (self.train, self.query or [], self.pretraining):
            digest.update(f"{len(rows)}\0".encode())
            for row in rows:
                digest.update(row.encode() + b"\0")
        return digest.hexdigest()


@singledispatch
def read(spec: Corpus) -> Sources:
    """The rows that a spec asks for. Raises `UserError` where there are none."""
    raise TypeError(f"no texts of kind {type(spec).__name__}")


@read.register
def _(spec: Articles) -> Sources:
    def rows(stream: str, words: int) -> list[str]:
        return [row for one in articles(stream, spec.articles_seed, words) for row in one.rows]

    return Sources(rows("pool", spec.words), None, rows("pretraining", spec.pretraining_words),
                   f"made-up articles, seed {spec.articles_seed}")  # fmt: skip


@read.register
def _(spec: TextFiles) -> Sources:
    def rows(path: str | None, key: str) -> list[str]:
        return [] if path is None else lines(path, key)

    return Sources(
        rows(spec.path, "path"),
        None if spec.query_path is None else rows(spec.query_path, "query_path"),
        rows(spec.pretraining_path, "pretraining_path"),
        ", ".join(path for path in (spec.path, spec.query_path, spec.pretraining_path) if path),
    )


@read.register
def _(spec: Wikitext) -> Sources:
    train = _split(spec, spec.train_split)
    query = None if spec.query_split is None else _split(spec, spec.query_split)
    pretraining = [] if spec.pretraining_split is None else _split(spec, spec.pretraining_split)
    as_published = (
        (spec.train_split, spec.query_split, spec.block, spec.rows) == ("train", "validation", 512, ROWS)
        and (spec.train, spec.query) == (None, None)
        and (len(train), len(query or [])) == tuple(PUBLISHED_ROWS.values())
        and not any("<unk>" in row for row in train[:ROWS])  # of the other variant, which is not raw
    )
    return Sources(train, query, pretraining, spec.path or f"{spec.repository} {spec.name}", as_published)


def lines(path: str, key: str) -> list[str]:
    """The lines of a text file, or of all *.txt of a folder, with their ends; empty ones are empty rows."""
    place = Path(path).expanduser()
    files = sorted(place.glob("*.txt")) if place.is_dir() else [place]
    found: list[str] = []
    for file in files:
        try:
            found.extend(_rows(file.read_text(encoding="utf-8").splitlines(keepends=True)))
        except FileNotFoundError:
            raise UserError(f"data.{key}: no such file: {file.absolute()}. Give data.{key}=FILE") from None
        except UnicodeDecodeError:
            raise UserError(
                f"data.{key}: {file} is no text in UTF-8. Convert it, e.g. with iconv -t UTF-8"
            ) from None
        except OSError as error:
            raise UserError(f"data.{key}: cannot read {file.absolute()}: {error.strerror}") from None
    if not any(found):
        what = f"no *.txt with text in {place}" if place.is_dir() else f"{place} has no text"
        raise UserError(f"data.{key}: {what}. Give data.{key}=FILE")
    return found


def _rows(texts: Iterable[Any]) -> list[str]:
    """As the hub's WikiText has them: lines with their ends, and nothing where a line is blank."""
    return [str(text) if str(text).strip() else "" for text in texts]


def _split(spec: Wikitext, split: Split) -> list[str]:
    if spec.path is None:
        return _from_hub(spec, split)
    folder = Path(spec.path).expanduser()
    found = [file for name in _FILES[split] for file in sorted(folder.glob(name))]
    if not found:
        raise UserError(
            f"data.path: {folder.absolute()} has no file of the {split} split. Valid names:"
            f" {', '.join(_FILES[split])}"
        )
    if found[0].suffix == ".parquet":
        import pandas

        return _rows(pandas.read_parquet(found[0], columns=["text"])["text"])
    return lines(str(found[0]), "path")


def _from_hub(spec: Wikitext, split: Split) -> list[str]:
    import datasets

    try:
        loaded = datasets.load_dataset(spec.repository, spec.name, split=split, revision=spec.revision)
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"data: {spec.repository} {spec.name} cannot be loaded from the hub: {first}\nGive a folder that"
            f" has its files: data.path=FOLDER (with {', '.join(_FILES[split])})"
        ) from None
    return _rows(loaded["text"])
