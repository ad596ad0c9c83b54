"""Paragraphs about subjects: given subject by subject, retrieved from a collection, or of a small world.

Source: Geva et al. 2023, arXiv 2304.14767: 100 paragraphs of Wikipedia for each subject, by BM25. Retrieval
is bm25s (Lucene's variant, k1 1.5, b 0.75, words of two letters or more, lower case, no stemming).
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from repro.data.base_specs import sha256_of
from repro.data.download import download
from repro.data.facts_toy import FactWorld
from repro.data.paragraph_specs import Paragraphs
from repro.errors import UserError
from repro.progress import progress
from repro.results import write_atomic

KEY = "analysis.paragraphs"
MANY = 10_000  # paragraphs, from which on an index takes more than a moment
TEXT = (".txt", ".raw")
IDS = '{"subject": [ids], "tokens": [ids]}'
FORMATS = (
    'JSONL with {"subject": ..., "paragraphs": ...} or {"text": ...} a line, CSV with columns subject and'
    " paragraphs, .txt or .raw with a paragraph a line, or a folder of .txt files (each also .gz, text also"
    f" .zip); as token ids JSONL with {IDS} a line"
)
Subject = str | tuple[int, ...]
Content = str | tuple[int, ...]


@dataclass(frozen=True)
class Found:
    """Paragraphs joined, by subject; subjects without any are not in it. says: where from.

    Subjects and paragraphs are texts or token ids, as they were given.
    """

    texts: Mapping[Subject, Content]
    says: str


def find(
    spec: Paragraphs, subjects: Sequence[Subject], world: FactWorld | None = None, texts: bool = True
) -> Found:
    """The paragraphs of these subjects: those of `spec.path`, else the world's, else what is downloaded.

    subjects: all their names. texts: whether texts can be made tokens. Raises `UserError` where there is no
    source, or it cannot be read.
    """
    if world is not None and not spec.path:
        return Found({**of_world(world)}, "a list of the attributes of each subject of the small world")
    if not (spec.path or (spec.url and texts)):
        kinds = FORMATS if texts else f"JSONL with {IDS} a line, since this model's folder has no tokenizer"
        raise UserError(
            f"{KEY}: the attributes rate counts words of paragraphs about each subject, and this data brings"
            f" none. Give {KEY}.path=FILE_OR_FOLDER: {kinds}"
        )
    path, distinct = _path(spec), list(dict.fromkeys(subjects))
    given = _given(path)
    if given is not None:
        wanted = {name: given[name] for name in distinct if given.get(name)}
        return Found(wanted, f"paragraphs of each subject from {path.name}")
    words = [name for name in distinct if isinstance(name, str)]
    if not (texts and words):
        raise UserError(
            f"{KEY}: {path} is a collection of texts to search, and this model's folder has no tokenizer."
            f" Give paragraphs of each subject as token ids: JSONL with {IDS} a line"
        )
    found = _cached(spec, path, words)
    kept: dict[Subject, Content] = {name: " ".join(parts) for name, parts in found.items() if parts}
    return Found(kept, f"up to {spec.per_subject} paragraphs of {path.name} for each subject, by BM25")


def of_world(world: FactWorld) -> dict[str, str]:
    """One paragraph for each subject of the small world: all its attributes, and not its names.

    So a rate counts attributes alone; what is left of a subject's own embedding in its state does not.
    """
    told: dict[str, list[str]] = {subject: [] for subject in world.names}
    for (subject, _), attribute in world.attributes.items():
        told[subject].append(attribute)
    return {subject: " ".join(words) for subject, words in told.items()}


def retrieve(collection: Sequence[str], subjects: Sequence[str], count: int) -> dict[str, list[str]]:
    """The `count` paragraphs of highest BM25 score for each subject, best first.

    Those that share no word with the subject are left out; equal scores are in the collection's order.
    """
    with without_jax(), ExitStack() as stack:
        import bm25s

        index = bm25s.BM25(backend="numpy")
        shown = len(collection) > MANY and sys.stderr.isatty()  # bm25s has bars of its own, for terminals
        words = bm25s.tokenize(list(collection), stopwords=[], show_progress=shown)
        index.index(words, show_progress=shown)
        queries: Any = bm25s.tokenize(list(subjects), stopwords=[], show_progress=False, return_ids=False)
        found = {}
        bar = stack.enter_context(progress(len(subjects), "searching paragraphs", "subjects"))
        for subject, query in zip(subjects, queries, strict=True):
            known = [word for word in query if word in index.vocab_dict]  # type: ignore[union-attr]
            scores = index.get_scores(known) if known else np.zeros(len(collection))
            best = np.argsort(-scores, kind="stable")[:count]
            found[subject] = [collection[i] for i in best if scores[i] > 0]
            bar.advance()
    return found


@contextmanager
def without_jax() -> Iterator[None]:
    """For importing bm25s: it takes JAX where it finds it, and a PyTorch run never loads that."""
    hidden = [name for name in ("jax", "jax.lax") if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # its import raises ImportError, as bm25s expects
    try:
        yield
    finally:
        for name in hidden:
            if sys.modules.get(name) is None:
                sys.modules.pop(name, None)


def _path(spec: Paragraphs) -> Path:
    if not spec.path:
        assert spec.url is not None and spec.sha256 is not None
        return download(spec.url, spec.sha256, spec.cache, f"{KEY}.sha256", key=KEY)
    path = Path(spec.path).expanduser()
    if not path.exists():
        raise UserError(f"{KEY}.path: no such file or folder: {path.absolute()}. Give {FORMATS}")
    return path


def _cached(spec: Paragraphs, path: Path, subjects: list[str]) -> dict[str, list[str]]:
    """What is retrieved, found again by the contents of the collection, the subjects and their number."""
    import pooch

    folder = Path(spec.cache).expanduser() if spec.cache else Path(pooch.os_cache("repro"))
    key = json.dumps([sha256_of(path), spec.per_subject, subjects, "bm25s lucene 1.5 0.75"])
    kept = folder / f"paragraphs-{hashlib.sha256(key.encode()).hexdigest()[:16]}.jsonl"
    if kept.exists():
        rows = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
        return {row["subject"]: row["paragraphs"] for row in rows}
    collection = list(_collection(path))
    if not collection:
        raise UserError(f"{KEY}: {path} has no paragraphs. Give {FORMATS}")
    found = retrieve(collection, subjects, spec.per_subject)
    lines = [json.dumps({"subject": subject, "paragraphs": parts}) for subject, parts in found.items()]
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(kept, "\n".join(lines) + "\n")
    return found


def _given(path: Path) -> dict[Subject, Content] | None:
    """Paragraphs by subject, if that is what the file holds; the first of several entries counts."""
    if path.is_dir():
        return None
    found: dict[Subject, Content] = {}
    if _kind(path) == ".csv":
        for row in csv.DictReader(io.StringIO(_text(path))):
            if "subject" not in row or "paragraphs" not in row:
                raise UserError(
                    f"{KEY}: {path}: expected the columns subject and paragraphs; got {', '.join(row)}"
                )
            found.setdefault(row["subject"], (row["paragraphs"] or "").strip())
        return found
    if _kind(path) != ".jsonl":
        return None
    for line, item in _objects(path):
        if "subject" not in item:
            return None
        where, name = f"{KEY}: {path}, line {line}", item["subject"]
        if not isinstance(name, str):
            name = _ids(name, f"{where}: subject: expected text or a list of token ids")
        found.setdefault(name, _content(item, where))
    return found


def _content(item: Mapping[str, Any], where: str) -> Content:
    """Paragraphs of one line: a text, texts, token ids, or lists of them."""
    if "tokens" in item:
        parts = item["tokens"]
        nested = isinstance(parts, list) and parts and all(isinstance(part, list) for part in parts)
        flat = [token for part in parts for token in part] if nested else parts
        return _ids(flat, f"{where}: tokens: expected a list of token ids, or of such lists")
    parts = item.get("paragraphs")
    if isinstance(parts, str):
        return parts.strip()
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise UserError(
            f"{where}: paragraphs: expected text or a list of texts (token ids go under tokens); got"
            f" {parts!r:.80}"
        )
    return " ".join(parts).strip()


def _ids(value: Any, expected: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(one) is int and one >= 0 for one in value):
        raise UserError(f"{expected}; got {value!r:.80}")
    return tuple(value)


def _collection(path: Path) -> Iterator[str]:
    """All paragraphs, without those that are blank."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and _kind(file) in TEXT)
        for file in files:
            yield from _collection(file)
    elif _kind(path) == ".jsonl":
        for line, item in _objects(path):
            if not isinstance(item.get("text"), str):
                raise UserError(
                    f"{KEY}: {path}, line {line}: expected a field text; got {', '.join(item) or 'none'}"
                )
            yield item["text"]
    elif path.suffix == ".zip":
        yield from _zipped(path)
    elif _kind(path) in TEXT:
        yield from _lines(_text(path), _kind(path))
    else:
        raise UserError(
            f"{KEY}: {path}: unknown kind of file {_kind(path) or 'without ending'}. Give {FORMATS}"
        )


def _zipped(path: Path) -> Iterator[str]:
    """Paragraphs of all text files of an archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if Path(name).suffix in TEXT:
                    yield from _lines(archive.read(name).decode(), Path(name).suffix)
    except (OSError, UnicodeDecodeError, zipfile.BadZipFile) as error:
        raise UserError(f"{KEY}: cannot read {path}: {error}") from None


def _lines(text: str, kind: str) -> Iterator[str]:
    """Lines that are not blank; of WikiText (.raw) without headings, and with hyphens as they were."""
    for line in text.splitlines():
        line = line.strip()
        if kind == ".raw":
            line = "" if line.startswith("= ") else re.sub(r" @([-,.])@ ", r"\1", line)
        if line:
            yield line


def _objects(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{KEY}: {path}, line {number}: no JSON: {error.msg}") from None
        if not isinstance(item, dict):
            raise UserError(f"{KEY}: {path}, line {number}: expected an object {{...}}; got {line:.60}")
        yield number, item


def _kind(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix


def _text(path: Path) -> str:
    open_: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    try:
        with open_(path, "rt", encoding="utf-8") as stream:
            return stream.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{KEY}: cannot read {path}: {error}") from None
