"""What all choices of data have in common, and the checksum of a file or folder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from repro.errors import UserError
from repro.specs import Family


def sha256_of(path: str | Path) -> str:
    """Checksum of a file, or of all files (name and content) of a folder.

    Raises `UserError` if there is nothing at `path` or it cannot be read.
    """
    path, digest = Path(path).expanduser(), hashlib.sha256()
    try:
        if path.is_dir():
            for file in sorted(item for item in path.rglob("*") if item.is_file()):
                digest.update(f"{file.relative_to(path)}\0{sha256_of(file)}\0".encode())
            return digest.hexdigest()
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        raise UserError(f"data.path: no such file: {path.absolute()}. Give data.path=FILE") from None
    except OSError as error:
        raise UserError(f"data.path: cannot read {path.absolute()}: {error.strerror}") from None


class Data(Family):
    """A source of features, prompts or texts."""

    def for_model(self, model: Any) -> Data:
        """The same question put to this model (its spec): other words for one that knows no others, say."""
        return self

    def fingerprint(self) -> dict[str, Any]:
        """What of this choice can change a number: files by checksum, not by name. For the run's hash."""
        return self.model_dump(mode="json")

    def _without_places(self, sha256: Any) -> dict[str, Any]:
        places = {"path", "url", "cache", "sha256", "accept_checksum"}
        return {**self.model_dump(mode="json", exclude=places), "sha256": sha256}
