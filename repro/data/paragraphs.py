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
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from repro.data.base_specs import sha256_of
from repro.data.download import download
from repro.data.facts_toy import FactWorld
from repro.data.paragraph_specs import Paragraphs
from repro.errors import UserError
from repro.results import write_atomic

KEY = "analysis.paragraphs.path"
FORMATS = (
    'JSONL with {"subject": ..., "paragraphs": ...} or {"text": ...} a line, CSV with columns subject and'
    " paragraphs, .txt or .raw with a paragraph a line, or a folder of .txt files (each also .gz)"
)


@dataclass(frozen=True)
class Found:
    """Paragraphs joined by blanks, by subject; subjects without any are not in it. says: where from."""

    texts: Mapping[str, str]
    says: str


def find(spec: Paragraphs, subjects: Sequence[str], world: FactWorld | None = None) -> Found:
    """The paragraphs of these subjects. Raises `UserError` where there is no source, or it cannot be read."""
    if not (spec.path or spec.url):
        if world is None:
            raise UserError(
                "analysis.paragraphs: the attributes rate counts words of paragraphs about each subject, and"
                f" this data brings none. Give {KEY}=FILE_OR_FOLDER: {FORMATS}"
            )
        return Found(of_world(world), "a list of the attributes of each subject of the small world")
    path = _path(spec)
    given = _given(path)
    if given is not None:
        wanted = {
            subject: given[subject] for subject in dict.fromkeys(subjects) if given.get(subject, "").strip()
        }
        return Found(wanted, f"paragraphs of each subject from {path.name}")
    found = _cached(spec, path, list(dict.fromkeys(subjects)))
    texts = {subject: " ".join(parts) for subject, parts in found.items() if parts}
    return Found(texts, f"up to {spec.per_subject} paragraphs of {path.name} for each subject, by BM25")


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
    with without_jax():
        import bm25s

        index = bm25s.BM25(backend="numpy")
        words = bm25s.tokenize(list(collection), stopwords=[], show_progress=False)
        index.index(words, show_progress=False)
        queries: Any = bm25s.tokenize(list(subjects), stopwords=[], show_progress=False, return_ids=False)
        found = {}
        for subject, query in zip(subjects, queries, strict=True):
            known = [word for word in query if word in index.vocab_dict]  # type: ignore[union-attr]
            scores = index.get_scores(known) if known else np.zeros(len(collection))
            best = np.argsort(-scores, kind="stable")[:count]
            found[subject] = [collection[i] for i in best if scores[i] > 0]
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
    if spec.url:
        assert spec.sha256 is not None
        return download(spec.url, spec.sha256, spec.cache, "analysis.paragraphs.sha256")
    path = Path(str(spec.path)).expanduser()
    if not path.exists():
        raise UserError(f"{KEY}: no such file or folder: {path.absolute()}. Give {FORMATS}")
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


def _given(path: Path) -> dict[str, str] | None:
    """Paragraphs by subject, if that is what the file holds; the first of several entries counts."""
    if path.is_dir():
        return None
    found: dict[str, str] = {}
    if _kind(path) == ".csv":
        for row in csv.DictReader(io.StringIO(_text(path))):
            if "subject" not in row or "paragraphs" not in row:
                raise UserError(
                    f"{KEY}: {path}: expected the columns subject and paragraphs; got {', '.join(row)}"
                )
            found.setdefault(row["subject"], row["paragraphs"] or "")
        return found
    if _kind(path) != ".jsonl":
        return None
    for line, item in _objects(path):
        if "subject" not in item:
            return None
        parts = item.get("paragraphs")
        if not isinstance(parts, str | list):
            raise UserError(
                f"{KEY}: {path}, line {line}: paragraphs: expected text or a list of texts; got {parts!r:.80}"
            )
        found.setdefault(str(item["subject"]), parts if isinstance(parts, str) else " ".join(map(str, parts)))
    return found


def _collection(path: Path) -> Iterator[str]:
    """All paragraphs, without those that are blank."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and _kind(file) in (".txt", ".raw"))
        for file in files:
            yield from _collection(file)
    elif _kind(path) == ".jsonl":
        for line, item in _objects(path):
            if not isinstance(item.get("text"), str):
                raise UserError(
                    f"{KEY}: {path}, line {line}: expected a field text; got {', '.join(item) or 'none'}"
                )
            yield item["text"]
    elif _kind(path) in (".txt", ".raw"):
        yield from (line.strip() for line in _text(path).splitlines() if line.strip())
    else:
        raise UserError(
            f"{KEY}: {path}: unknown kind of file {_kind(path) or 'without ending'}. Give {FORMATS}"
        )


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
