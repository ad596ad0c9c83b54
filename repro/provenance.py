"""Where a number came from: code, packages, machine, command. No environment variable, no secret."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_PACKAGES = (
    "numpy", "scipy", "jax", "jaxlib", "equinox", "optax", "torch", "transformers", "tokenizers", "datasets",
    "safetensors", "h5py", "pandas", "pyarrow", "scikit-learn", "scikit-image", "matplotlib", "hydra-core",
    "omegaconf", "submitit", "wandb", "pydantic",
)  # fmt: skip
_SECRET = re.compile(r"(?i)([\w.\-]*(?:key|(?<!per_)token|secret|password)[\w\-]*)=\S+")
CODE = ("commit", "dirty", "diff_sha256")  # what `code` tells
_GIT_SECONDS = 10


def collect(
    command: Sequence[str],
    *,
    device: str = "cpu",
    seeds: Mapping[str, int] | int | None = None,
    checksums: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What provenance.json holds, apart from times.

    command: the words of the command line; values of words such as `api_key=...` are left out.
    device: what the numbers were computed on, in words.
    checksums: name of a data file -> sha256.
    """
    return {
        "command": [_SECRET.sub(r"\1=(not kept)", word) for word in command],
        **code(Path(__file__).resolve().parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "device": device,
        "seeds": dict(seeds) if isinstance(seeds, Mapping) else seeds,
        "checksums": dict(checksums or {}),
        "packages": packages(),
    }


def packages() -> dict[str, str]:
    """The versions of the packages that can change a number, without importing them."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def code(folder: Path) -> dict[str, Any]:
    """The commit of the code in `folder`; if files differ from it, `diff_sha256` tells the states apart.

    All None where there is no git or no repository.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain")
    if commit is None or changes is None:
        return {"commit": None, "dirty": None, "diff_sha256": None}
    dirty = bool(changes.strip())
    difference = (_git(folder, "diff", "HEAD", "--binary") or b"") + changes + _new_code(folder)
    sha = hashlib.sha256(difference).hexdigest() if dirty else None
    return {"commit": commit.decode().strip(), "dirty": dirty, "diff_sha256": sha}


def _new_code(folder: Path) -> bytes:
    """What is in code and config files that git does not know yet: their names alone would hide an edit."""
    names = _git(folder, "ls-files", "--others", "--exclude-standard", "-z", "--", "*.py", "*.yaml") or b""
    found = [folder / os.fsdecode(name) for name in sorted(names.split(b"\0")) if name]
    return b"".join(hashlib.sha256(path.read_bytes()).digest() for path in found if path.is_file())


def difference(submitted: Mapping[str, Any], started: Mapping[str, Any]) -> str | None:
    """In words, how the code that starts differs from the code that was submitted; None if it is the same.

    Both as `code` gives them, among other keys. A job imports the code as it is when it starts.
    """
    if not submitted.get("commit") or not started.get("commit"):
        return None
    if all(submitted.get(key) == started.get(key) for key in CODE):
        return None
    return f"the code changed after submission: {_state(submitted)} then, {_state(started)} at the start"


def _state(code: Mapping[str, Any]) -> str:
    changes = f" with changes {code['diff_sha256'][:8]}" if code.get("dirty") else ""
    return f"{code['commit'][:10]}{changes}"


def _git(folder: Path, *words: str) -> bytes | None:
    try:
        return subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, check=True, timeout=_GIT_SECONDS
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
