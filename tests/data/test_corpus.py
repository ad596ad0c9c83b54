"""Texts cut into blocks: the published grouping, counted by hand; pools; where texts come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repro.data import corpus
from repro.data.articles import articles
from repro.data.corpus import group, load, pooled
from repro.data.specs import Data
from repro.errors import UserError


class Letters:
    """A tokenizer with one token a character, as the library calls one."""

    def __call__(self, rows: list[str], add_special_tokens: bool, verbose: bool) -> dict[str, Any]:
        assert not add_special_tokens
        return {"input_ids": [[ord(letter) for letter in row] for row in rows]}


def spec(**values: Any) -> Any:
    return Data.choose({"kind": "text_files", **values}, "data")


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_what_a_batch_of_rows_leaves_over_is_dropped() -> None:
    rows = [[1, 2, 3], [], [4, 5], [6, 7, 8, 9], [10], [11]]
    # Batches of two rows: 1 2 3 | 4 5 6 7 8 9 | 10 11. Of each, blocks of two; an odd one goes.
    assert group(rows, 2, 2).tolist() == [[1, 2], [4, 5], [6, 7], [8, 9], [10, 11]]
    # Batches of four rows: 1 ... 9 | 10 11: the 9 goes.
    assert group(rows, 2, 4).tolist() == [[1, 2], [3, 4], [5, 6], [7, 8], [10, 11]]
    assert group(rows, 4, None).tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert group(rows, 5, 3).tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]
    assert group(rows, 12, None).shape == (0, 12) and group([], 3, 1000).shape == (0, 3)


def test_more_rows_than_a_batch_give_fewer_blocks_than_all_at_once() -> None:
    rows = [[token] * 3 for token in range(2500)]
    assert len(group(rows, 512, 1000)) == 2 * (3000 // 512) + 1500 // 512 == 12
    assert len(group(rows, 512, None)) == 7500 // 512 == 14


def test_a_pool_is_the_first_blocks_shuffled_and_the_first_are_queries() -> None:
    blocks = np.arange(20)[:, None]
    train, query = pooled(blocks, 6, 3, 1)
    order = np.random.default_rng(1).permutation(9)
    assert query[:, 0].tolist() == order[:3].tolist() and train[:, 0].tolist() == order[3:].tolist()
    with pytest.raises(UserError, match=r"asked for 21 blocks, and the text gives 20"):
        pooled(blocks, 18, 3, 1)


def test_blocks_of_a_file_of_ones_own(tmp_path: Path) -> None:
    path = write(tmp_path / "text.txt", "abcd\n\n   \nefghij\nkl")
    texts = load(spec(path=path, block=3, rows=None, train=2, query=1))
    blocks, tokenizer = "abc d\ne fgh ij\n".split(" "), Letters()
    order = np.random.default_rng(1).permutation(3)
    found = texts.blocks(tokenizer)
    read = [
        ["".join(map(chr, block)) for block in part.tokens.tolist()] for part in (found.query, found.train)
    ]
    assert read == [[blocks[order[0]]], [blocks[order[1]], blocks[order[2]]]]
    # What the pool leaves over is there to pretrain on.
    assert ["".join(map(chr, block)) for block in texts.pretraining(tokenizer)] == ["ij\n"]
    assert texts.blocks(tokenizer) is found and not found.is_published
    with pytest.raises(UserError, match=r"the model has no tokenizer.*data=token_blocks"):
        texts.blocks(None)


def test_queries_and_pretraining_may_have_files_of_their_own(tmp_path: Path) -> None:
    train, query, more = (write(tmp_path / f"{name}.txt", text) for name, text in
                          {"train": "abcdefg", "query": "hijk", "more": "lmnopq"}.items())  # fmt: skip
    texts = load(spec(path=train, query_path=query, pretraining_path=more, block=2, train=2))
    tokenizer = Letters()
    found = texts.blocks(tokenizer)
    assert found.train.tokens.tolist() == [[97, 98], [99, 100]]
    assert found.query.tokens.tolist() == [[104, 105], [106, 107]]
    assert len(texts.pretraining(tokenizer)) == 3 and len(texts.rows) == 3
    with pytest.raises(UserError, match=r"data.train: asked for 9 blocks, and the text gives 3"):
        load(spec(path=train, query_path=query, block=2, train=9)).blocks(tokenizer)


def test_wikitext_from_a_folder_is_as_on_the_hub(tmp_path: Path) -> None:
    write(tmp_path / "wiki.train.raw", " \n = Title = \n \n Some text . \n")
    write(tmp_path / "wiki.valid.raw", " \n = Other = \n")
    texts = load(Data.choose({"kind": "wikitext", "path": str(tmp_path), "block": 4}, "data"))
    assert texts.sources.train == ["", " = Title = \n", "", " Some text . \n"]
    assert texts.sources.query == ["", " = Other = \n"]
    assert not texts.is_published  # these are not the 36,718 rows
    pool = {"kind": "wikitext", "path": str(tmp_path), "train_split": "test", "query_split": None}
    with pytest.raises(UserError, match=r"no file of the test split. Valid names: wiki.test.raw"):
        load(Data.choose({**pool, "train": 1, "query": 1}, "data"))
    with pytest.raises(UserError, match=r"both numbers must be given; got None and None"):
        Data.choose(pool, "data")


@pytest.mark.parametrize("content, says", [(b"", "has no text"), (b"\xff\xfe", "is no text in UTF-8")])
def test_files_that_are_no_text_are_refused(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(UserError, match=says):
        load(spec(path=str(tmp_path / "x.txt"), train=1, query=1))
    with pytest.raises(UserError, match="no such file"):
        load(spec(path=str(tmp_path / "y.txt"), train=1, query=1))
    with pytest.raises(UserError, match=r"data.path: a file or folder is required"):
        spec(train=1, query=1)


def test_articles_are_the_same_again_and_share_no_names_between_streams() -> None:
    pool, others = articles("pool", 0, 3000), articles("pretraining", 0, 3000)
    assert pool == articles("pool", 0, 3000) and pool != articles("pool", 1, 3000)
    assert articles("pool", 0, 6000)[: len(pool)] == pool
    subjects = [{one.title.split()[0] for one in some} for some in (pool, others)]
    assert len(subjects[0]) == len(pool) and not subjects[0] & subjects[1]
    one = pool[0]
    assert one.rows[0] == f" = {one.title} = \n" and one.title.split()[0] in one.rows[1] + one.rows[2]
    assert sum(len(row.split()) for some in pool for row in some.rows) >= 3000


def test_the_digest_is_of_the_text(tmp_path: Path) -> None:
    path = write(tmp_path / "text.txt", "abcdef")
    first = load(spec(path=path, block=2, train=1, query=1))
    assert corpus.load(spec(path=path, block=3, train=1, query=1)).sha256 == first.sha256
    other = write(tmp_path / "other.txt", "abcdeg")
    assert load(spec(path=other, block=2, train=1, query=1)).sha256 != first.sha256
    assert spec(path=path, train=1, query=1).fingerprint() != spec(path=other, train=1, query=1).fingerprint()
