"""What makes two runs the same: a digest of everything that can change a number.

Files count by their content, not by their name, so a moved file gives the same run and a changed one another.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from repro.errors import UserError
from repro.root_specs import NOT_HASHED, dump
from repro.specs import Spec

DIGITS = 12
_FILE_KEYS = ("path", "checkpoint", "file")


def digest(content: Any) -> str:
    """12 hexadecimal digits for plain values; the order of keys does not matter."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def content(parsed: Mapping[str, Any], experiment: str) -> dict[str, Any]:
    """All of a checked config (see `root_specs.parse`) that can change a number, as plain values.

    Raises `UserError` if a file that the config names is missing or cannot be read.
    """
    kept = {key: part for key, part in parsed.items() if key not in NOT_HASHED and key != "paper"}
    plain = {key: _fingerprint(part, key) for key, part in kept.items()}
    return {**plain, "paper": parsed["paper"].slug, "experiment": experiment}


def without_seeds(content: Mapping[str, Any]) -> dict[str, Any]:
    """The same, without what repeats of one experiment differ in."""
    return {key: part for key, part in content.items() if key != "seed"}


def is_file_key(key: str) -> bool:
    """Whether a config key names a file or folder: `path`, `checkpoint`, `..._path`, `..._file`."""
    return key in _FILE_KEYS or key.endswith(tuple(f"_{word}" for word in _FILE_KEYS))


def checksum(path: Path, where: str) -> str:
    """sha256 of a file, or of the names and contents of all files in a folder.

    Raises `UserError`, naming the config key `where`, if it is missing or cannot be read.
    """
    try:
        if path.is_dir():
            files = sorted(item for item in path.rglob("*") if item.is_file())
            listing = "".join(f"{item.relative_to(path)}\0{checksum(item, where)}\0" for item in files)
            return hashlib.sha256(listing.encode()).hexdigest()
        state = path.stat()
        return _checksum_of(path.resolve(), state.st_size, state.st_mtime_ns)
    except FileNotFoundError:
        raise UserError(
            f"{where}: no such file: {path.absolute()}. Give one that exists: {where}=FILE"
        ) from None
    except OSError as error:
        raise UserError(f"{where}: cannot read {path.absolute()}: {error.strerror}") from None


@functools.lru_cache(maxsize=4096)
def _checksum_of(path: Path, size: int, changed: int) -> str:
    # Size and time of change are arguments only so that a file changed since is read again.
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fingerprint(part: Any, where: str) -> Any:
    own = getattr(part, "fingerprint", None)
    if isinstance(part, Spec) and own is not None:
        return own()  # this kind knows itself which of its values can change a number
    if isinstance(part, dict):
        return {key: _fingerprint(item, f"{where}.{key}") for key, item in part.items()}
    if isinstance(part, list):
        return [_fingerprint(item, f"{where}.{i}") for i, item in enumerate(part)]
    return _by_content(dump(part), where)


def _by_content(plain: Any, where: str) -> Any:
    if isinstance(plain, dict):
        return {
            key: {"sha256": checksum(Path(item).expanduser(), f"{where}.{key}")}
            if _names_file(key, item, where)
            else _by_content(item, f"{where}.{key}")
            for key, item in plain.items()
        }
    if isinstance(plain, list):
        return [_by_content(item, f"{where}.{i}") for i, item in enumerate(plain)]
    return plain


def _names_file(key: Any, item: Any, where: str) -> bool:
    if not isinstance(item, str) or not is_file_key(str(key)):
        return False
    # A model's path may also be a name on a hub, such as "gpt2" or "owner/name".
    hub = "model" in where.split(".") and item.count("/") <= 1 and not item.startswith((".", "/", "~"))
    return not hub or Path(item).exists()
