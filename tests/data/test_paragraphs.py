"""Paragraphs by subject and by retrieval; BM25 against the formula; the words that count."""

from __future__ import annotations

import gzip
import json
import math
import re
import subprocess
import sys
from pathlib import Path

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
    paths = [
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


def test_faults_are_named(tmp_path: Path) -> None:
    cases = {
        "no such file": str(tmp_path / "none.txt"),
        "line 2: no JSON": write(tmp_path / "a.jsonl", '{"text": "x"}\nnot'),
        "line 2: expected a field text": write(tmp_path / "b.jsonl", '{"text": "x"}\n{"no": 1}'),
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
