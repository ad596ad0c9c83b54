"""Paragraphs by subject and by retrieval; BM25 against the formula; the words that count."""

from __future__ import annotations

import gzip
import json
import math
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from repro.data import paragraphs
from repro.data.context_words import Words, rates, stop_words
from repro.data.facts_toy import FactWorld
from repro.data.paragraph_specs import Paragraphs
from repro.data.paragraphs import find, of_world, retrieve
from repro.errors import UserError

COLLECTION = [
    "Beats Music was a streaming service owned by Apple.",
    "The beats of a heart are counted in a minute.",
    "Apple bought Beats Electronics, and with it Beats Music.",
    "Nothing here is about it at all.",
    "Music, music, music and nothing else than music.",
]


def bm25(query: str, collection: list[str]) -> list[float]:
    """The formula of Lucene, written out: k1 1.5, b 0.75."""
    cut = [re.findall(r"(?u)\b\w\w+\b", text.lower()) for text in collection]
    mean = sum(map(len, cut)) / len(cut)
    scores = []
    for words in cut:
        total = 0.0
        for word in re.findall(r"(?u)\b\w\w+\b", query.lower()):
            having = sum(word in other for other in cut)
            idf = math.log(1 + (len(cut) - having + 0.5) / (having + 0.5))
            count = words.count(word)
            total += idf * count / (count + 1.5 * (1 - 0.75 + 0.75 * len(words) / mean))
        scores.append(total)
    return scores


@pytest.mark.parametrize("subject", ["Beats Music", "Apple", "The Who", "nowhere"])
def test_retrieval_is_bm25_and_leaves_out_what_shares_no_word(subject: str) -> None:
    scores = bm25(subject, COLLECTION)
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    expected = [COLLECTION[i] for i in order if scores[i] > 0]
    assert retrieve(COLLECTION, [subject], 5)[subject] == expected
    assert retrieve(COLLECTION, [subject], 1)[subject] == expected[:1]


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_every_format_gives_the_same_paragraphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder/a.txt", "\n\n".join(COLLECTION[:2]))
    write(tmp_path / "folder/b.txt", "\n".join(COLLECTION[2:]))
    with gzip.open(tmp_path / "c.txt.gz", "wt") as file:
        file.write("\n".join(COLLECTION))
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("wiki/a.raw", " = Beats Music = \n" + "\n".join(COLLECTION))
        archive.writestr("wiki/read.me", "Beats Music Beats Music")
    paths = [
        str(tmp_path / "z.zip"),
        str(tmp_path / "folder"),
        str(tmp_path / "c.txt.gz"),
        write(tmp_path / "d.jsonl", "\n".join(json.dumps({"text": text}) for text in COLLECTION)),
        write(tmp_path / "e.raw", "\n".join(COLLECTION)),
    ]
    expected = {"Beats Music": " ".join(retrieve(COLLECTION, ["Beats Music"], 2)["Beats Music"])}
    for number, path in enumerate(paths):
        spec = Paragraphs(path=path, per_subject=2, cache=str(tmp_path / f"cache{number}"))
        assert find(spec, ["Beats Music", "nowhere", "Beats Music"]).texts == expected
        with monkeypatch.context() as patched:  # what was retrieved is found again, and nothing is retrieved
            patched.setattr(paragraphs, "retrieve", None)
            assert find(spec, ["Beats Music", "nowhere"]).texts == expected


def test_paragraphs_given_for_each_subject(tmp_path: Path) -> None:
    rows = [{"subject": "A", "paragraphs": ["one", "two"]}, {"subject": "B", "paragraphs": " "},
            {"subject": "A", "paragraphs": "later"}]  # fmt: skip
    jsonl = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    csv = write(tmp_path / "a.csv", 'subject,paragraphs\nA,one two\nB," "\n')
    for path in (jsonl, csv):
        assert find(Paragraphs(path=path), ["A", "B", "C"]).texts == {"A": "one two"}


def test_paragraphs_as_token_ids(tmp_path: Path) -> None:
    rows = [{"subject": [3, 4], "tokens": [5, 6]}, {"subject": "A", "tokens": [[7], [8, 9]]},
            {"subject": [4], "tokens": []}, {"subject": [5], "paragraphs": "a text"}]  # fmt: skip
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    asked = [(3, 4), "A", (4,), (5,), (6,)]
    expected = {(3, 4): (5, 6), "A": (7, 8, 9), (5,): "a text"}
    assert find(Paragraphs(path=path), asked, texts=False).texts == expected
    words = Words(None, 10)
    assert words.context((9, 5, 9)).tolist() == [5, 9] and words.texts[9] == "9"
    with pytest.raises(UserError, match='are texts, and .* no tokenizer.*"tokens"'):
        words.context("a text")
    with pytest.raises(UserError, match="between 0 and 9.*got 10"):
        words.context((3, 10))
    texts = write(tmp_path / "b.txt", "one\ntwo")
    for spec in (Paragraphs(path=texts), Paragraphs(), Paragraphs(url="http://127.0.0.1:9/a", sha256="0")):
        with pytest.raises(UserError, match='(?s)no tokenizer|JSONL with .*"tokens"'):
            find(spec, asked, texts=False)


def test_wikitext_is_read_as_it_was_written(tmp_path: Path) -> None:
    raw = " = Beats Music = \n \n = = History = = \n A third @-@ party service of 1 @,@ 500 songs . \n"
    path = write(tmp_path / "wiki.train.raw", raw)
    found = find(Paragraphs(path=path, cache=str(tmp_path)), ["party"]).texts
    assert found == {"party": "A third-party service of 1,500 songs ."}


def test_a_collection_is_downloaded_where_nothing_else_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path goes before the data's own paragraphs, and these before what would be downloaded."""
    got: list[tuple[str, str]] = []

    def download(url: str, sha256: str, cache: str | None, accept: str, key: str) -> Path:
        got.append((url, accept))
        return Path(write(tmp_path / "web.txt", "a word from the web"))

    monkeypatch.setattr(paragraphs, "download", download)
    own = write(tmp_path / "own.txt", "a word of one's own")
    web: dict[str, Any] = {"url": "https://example.org/web.txt", "sha256": "0" * 64, "cache": str(tmp_path)}
    world = FactWorld(20)
    assert find(Paragraphs(path=own, **web), ["word"], world).texts == {"word": "a word of one's own"}
    assert find(Paragraphs(**web), ["word"], world).texts == of_world(world)
    assert not got
    assert find(Paragraphs(**web), ["word"]).texts == {"word": "a word from the web"}
    assert got == [("https://example.org/web.txt", "analysis.paragraphs.sha256")]
    assert Paragraphs(path=own, **web).fingerprint() == Paragraphs(path=own).fingerprint()


def test_faults_are_named(tmp_path: Path) -> None:
    cases = {
        "no such file": str(tmp_path / "none.txt"),
        "line 2: no JSON": write(tmp_path / "a.jsonl", '{"text": "x"}\nnot'),
        "line 2: expected a field text": write(tmp_path / "b.jsonl", '{"text": "x"}\n{"no": 1}'),
        "line 1: subject: expected text or": write(tmp_path / "g.jsonl", '{"subject": 3, "tokens": [1]}'),
        "line 1: tokens: expected a list": write(
            tmp_path / "h.jsonl", '{"subject": [3], "tokens": [[1], -1]}'
        ),
        "cannot read .*not a zip": write(tmp_path / "i.zip", "no archive"),
        "line 1: paragraphs: expected text": write(tmp_path / "c.jsonl", '{"subject": "x", "paragraphs": 3}'),
        "columns subject and paragraphs": write(tmp_path / "d.csv", "a,b\n1,2\n"),
        "unknown kind of file .xml": write(tmp_path / "e.xml", "<a/>"),
        "has no paragraphs": write(tmp_path / "f.txt", "\n \n"),
    }
    for message, path in cases.items():
        with pytest.raises(UserError, match=message):
            find(Paragraphs(path=path, cache=str(tmp_path)), ["x"])
    with pytest.raises(UserError, match="analysis.paragraphs.path=FILE_OR_FOLDER"):
        find(Paragraphs(), ["x"])
    with pytest.raises(UserError, match="sha256"):
        Paragraphs(url="https://example.org/a.txt")


def test_the_small_world_tells_every_attribute_of_a_subject() -> None:
    world = FactWorld(20)
    texts = of_world(world)
    assert find(Paragraphs(), ["x"], world).texts == texts
    for subject in world.names:
        attributes = [word for (who, _), word in world.attributes.items() if who == subject]
        assert texts[subject].split() == attributes and len(attributes) == 4


def test_retrieval_does_not_load_jax() -> None:
    code = (
        "import sys; from repro.data.paragraphs import retrieve; retrieve(['a word'], ['word'], 1);"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'jax'];"
        "import jax.lax; assert jax.lax.add"  # and it can be had afterwards
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_stop_words_are_those_of_nltk() -> None:
    """179 words; the contractions came in 2017 and are not in older lists."""
    words = stop_words()
    assert len(words) == 179
    assert {"i", "wouldn't", "should've", "ma", "y", "won"} <= words and not {"would", "he'd", "also"} & words


class Letters:
    """A tokenizer whose tokens are listed texts, two of them the same."""

    TEXTS = (
        " Apple",
        "Apple",
        "the",
        " The",
        " ab",
        "abc",
        " abc",
        "Don",
        " Apple",
        " music",
        "should",
        "Should",
    )

    def decode(self, ids: list[int]) -> str:
        return self.TEXTS[ids[0]]

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [int(i) for i in text.split()]}


def test_words_that_count() -> None:
    words = Words(Letters(), 12)
    texts = [text for text, counted in zip(words.texts, words.counted, strict=True) if counted]
    assert texts == [" Apple", "Apple", "abc", " abc", " Apple", " music"]
    texts = [text for text, counted in zip(words.texts, words.contextual, strict=True) if counted]
    assert texts == [" Apple", "Apple", " The", "abc", " abc", "Don", " Apple", " music", "Should"]
    assert words.strings == 11 and words.string[0] == words.string[8]


def test_rates_are_the_definition() -> None:
    """Against sets of texts, as the notebook computes them."""
    generator = torch.Generator().manual_seed(0)
    words = Words(Letters(), 12)
    ids = torch.stack([torch.randperm(12, generator=generator)[:8] for _ in range(40)])
    contexts = [words.context("0 3 5"), words.context("1 6 9 2"), words.context("8 9 7 11")]
    member = torch.zeros(40, words.strings, dtype=torch.bool)
    for row in range(40):
        member[row, contexts[row % 3]] = True
    stop = stop_words()
    texts = [{" Apple", " The", "abc"}, {"Apple", " abc", " music"}, {" Apple", " music", "Don", "Should"}]
    for top in (1, 3, 8):
        found = rates(words, ids, member, top)
        for row in range(40):
            top_words = [Letters.TEXTS[i] for i in ids[row].tolist()]
            kept = [t for t in top_words if t.strip().lower() not in stop and len(t.strip()) > 2][:top]
            expected = 100 * len(set(kept) & texts[row % 3]) / len(kept)
            assert float(found[row]) == pytest.approx(expected, abs=1e-12)
