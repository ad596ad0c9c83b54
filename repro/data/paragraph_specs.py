"""Where paragraphs about subjects come from: the typed config. Imports no PyTorch."""

from __future__ import annotations

from typing import Any, Self

from pydantic import PositiveInt, model_validator

from repro.data.base_specs import sha256_of
from repro.errors import UserError
from repro.specs import Spec


class Paragraphs(Spec):
    """Paragraphs about each subject: given for each, or retrieved from a collection by BM25.

    path: a file or folder. Either paragraphs of each subject (JSONL {"subject", "paragraphs"}, or CSV with
    these columns; as token ids JSONL {"subject", "tokens"}, where the subject may be token ids, too), or a
    collection to search: JSONL {"text"}, .txt or .raw with one paragraph a line, a folder of .txt files; all
    also as .gz, and .txt and .raw as .zip. url, sha256: the same to be downloaded, where neither a path is
    given nor the data has its own, as the small world has. per_subject: how many are retrieved for each
    subject. cache: folder for downloads and for what was retrieved; null: the user's cache folder.
    """

    path: str | None = None
    url: str | None = None
    sha256: str | None = None
    per_subject: PositiveInt = 100
    cache: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.url and not self.path and not self.sha256:
            raise UserError(
                "analysis.paragraphs.sha256: the checksum of the file at url is required (sha256sum FILE)"
            )
        return self

    def fingerprint(self) -> dict[str, Any]:
        """What of it can change a number: the file by its checksum."""
        content = sha256_of(self.path) if self.path else self.sha256
        return {"sha256": content, "per_subject": self.per_subject}
