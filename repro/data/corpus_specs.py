"""Texts that are cut into blocks of tokens: the typed config. Imports no PyTorch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from repro.data.base_specs import Data, sha256_of
from repro.data.sequence_specs import Natural, Positive
from repro.errors import UserError

Split = Literal["train", "validation", "test"]
ROWS = 1000  # of a batch of the published grouping


class Corpus(Data):
    """What texts of any source share: how they become blocks to train on and blocks to ask about.

    block: tokens of one. rows: so many rows (lines) of the text are tokenised and put together at a time, and
    what is left at their end is dropped (published: 1000); null: all rows together. train, query: how many
    blocks (null: all there are). Where queries have no text of their own, both come from a pool: the first
    train + query blocks of the text, shuffled with `seed`; the first `query` of them are the queries.
    """

    module: ClassVar[str] = "repro.data.corpus"
    block: Annotated[int, Field(ge=2)] = 512
    rows: Positive | None = ROWS
    train: Positive | None = None
    query: Positive | None = None
    seed: Natural = 1

    @property
    def pooled(self) -> bool:
        """Whether queries come from the text that is trained on."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _counts(self) -> Self:
        if self.pooled and (self.train is None or self.query is None):
            raise UserError(
                f"data.train, data.query: queries have no text of their own, so both numbers must be given;"
                f" got {self.train} and {self.query}. Give e.g. data.train=512 data.query=32"
            )
        return self


class Articles(Corpus):
    """Made-up articles (see `repro.data.articles`), and others to pretrain on: the embedded default.

    words, pretraining_words: of the pool and of the articles to pretrain on, at least. articles_seed: which.
    """

    kind: Literal["articles"] = "articles"
    block: Annotated[int, Field(ge=2)] = 64
    rows: Positive | None = None
    train: Positive | None = 512
    query: Positive | None = 32
    words: Positive = 25_000
    pretraining_words: Natural = 160_000
    articles_seed: Natural = 0

    @property
    def pooled(self) -> bool:
        return True


class Wikitext(Corpus):
    """WikiText-2, raw, by splits: of the hub, or from a folder.

    path: a folder with one file a split, named as distributed (wiki.train.raw, wiki.valid.raw, wiki.test.raw;
    or train.txt, ...; or Parquet files of the hub); null: `name` of `repository` on the hub, or in its cache.
    train_split, query_split (null: a pool), pretraining_split (null: none): what each is made of.
    """

    kind: Literal["wikitext"] = "wikitext"
    path: str | None = None
    repository: str = "Salesforce/wikitext"
    name: str = "wikitext-2-raw-v1"
    revision: str | None = None
    train_split: Split = "train"
    query_split: Split | None = "validation"
    pretraining_split: Split | None = None

    @property
    def pooled(self) -> bool:
        return self.query_split is None

    def fingerprint(self) -> dict[str, Any]:
        if self.path is None:
            return self.model_dump(mode="json", exclude={"path"})
        own = self.model_dump(mode="json", exclude={"path", "repository", "name", "revision"})
        return {**own, "sha256": sha256_of(self.path)}


class TextFiles(Corpus):
    """The user's own texts: files of UTF-8, or folders of such files (*.txt, in the order of their names).

    path: to train on. query_path: to ask about; null: a pool. pretraining_path: for a model that starts from
    random weights; null: what the pool leaves over.
    """

    kind: Literal["text_files"] = "text_files"
    path: str | None = None
    query_path: str | None = None
    pretraining_path: str | None = None

    @property
    def pooled(self) -> bool:
        return self.query_path is None

    @model_validator(mode="after")
    def _given(self) -> Self:
        if not self.path:
            raise UserError("data.path: a file or folder is required. Give it with data.path=TEXT.txt")
        return self

    def fingerprint(self) -> dict[str, Any]:
        own = self.model_dump(mode="json", exclude={"path", "query_path", "pretraining_path"})
        paths = {"path": self.path, "query_path": self.query_path, "pretraining_path": self.pretraining_path}
        return {**own, "sha256": {name: path and sha256_of(path) for name, path in paths.items()}}
