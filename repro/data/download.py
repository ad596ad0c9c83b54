"""Files from the web, verified by checksum and kept in a cache."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from repro.data.specs import sha256_of
from repro.errors import UserError


def download(
    url: str,
    sha256: str,
    cache: str | None = None,
    accept_with: str = "",
    checksum: Callable[[Path], str] = sha256_of,
    key: str = "data",
) -> Path:
    """Path of the file at `url` in the cache, downloaded if it is not there yet, and verified.

    A file is complete and verified or absent: pooch downloads to a temporary name. `accept_with`
    names the key that takes the checksum of another file; `checksum` says how one is taken of a file; `key`
    is where in the config url, path and cache are.
    Raises `UserError` if the file cannot be had or is another one.
    """
    import pooch

    folder = Path(cache).expanduser() if cache else Path(pooch.os_cache("repro"))
    name = url.rsplit("/", 1)[1]
    target = folder / name
    if target.exists() and checksum(target) == sha256:
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The checksum is compared below, where both can be told: pooch would delete the other file.
        got = Path(pooch.retrieve(url, None, f"{name}.{os.getpid()}", folder, progressbar=True))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{key}.url: cannot download {url} to {folder}: {error}. Get the file by other means and give"
            f" {key}.path=FILE, or choose a writable folder with {key}.cache=FOLDER"
        ) from None
    found, size = checksum(got), got.stat().st_size
    if found == sha256:
        return got.replace(target)
    got.unlink()
    fix = f"\nIf that is the file you want: {accept_with}={found}" if accept_with else ""
    raise UserError(
        f"{key}.url: {url} gave another file than expected.\n  expected sha256 {sha256}\n"
        f"  got      sha256 {found}, {size:,} bytes{fix}"
    )
