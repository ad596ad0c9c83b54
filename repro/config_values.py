"""What may stand in a resolved config: nothing secret, and no path that depends on where it was started."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from repro import identity
from repro.errors import UserError

# Whether something is asked for "per token" is no secret.
SECRET_KEY = re.compile(r"(?i)(^|[._/-])(api_?key|key|(?<!per_)token|secret|password|passwd)$")
_SECRET_NAME = re.compile(r"(?i)(key|token|secret|password)")


def refuse_leaks(values: Any) -> None:
    """A resolved config is saved and logged, so nothing secret of the environment may have got into it."""
    named = {value: name for name, value in os.environ.items() if _SECRET_NAME.search(name)}
    secrets = {value: name for value, name in named.items() if len(value) >= 12}
    for text in _texts(values):
        for value, name in secrets.items():
            if value in text:
                raise UserError(
                    f"the config holds the value of ${name}, and is saved and logged. Leave it out"
                )


def _texts(values: Any) -> Iterator[str]:
    if isinstance(values, str):
        yield values
    for item in values.values() if isinstance(values, dict) else values if isinstance(values, list) else ():
        yield from _texts(item)


def absolute(values: Any) -> Any:
    """A job may start in another folder, so files that exist are named from the root."""
    if isinstance(values, list):
        return [absolute(item) for item in values]
    if not isinstance(values, dict):
        return values
    return {
        key: str(Path(item).expanduser().absolute())
        if isinstance(item, str) and identity.is_file_key(str(key)) and Path(item).expanduser().exists()
        else absolute(item)
        for key, item in values.items()
    }


def command_line_wins(values: Any, overrides: Sequence[str]) -> None:
    """Drop from every condition the settings of training that the command line gives: they hold for all."""
    for line in overrides:
        root, *path = line.lstrip("+~").split("=")[0].split(".")
        if root != "training" or not path:
            continue
        for condition in (values.get("conditions") or {}).values():
            inner = (condition or {}).get(root) or {}
            for key in path[:-1]:
                inner = inner.get(key) or {}
            inner.pop(path[-1], None)
