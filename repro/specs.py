"""Typed configuration: what a mapping from a config file must look like.

Every room declares its own specs in a `specs.py` that imports nothing heavy, so a typo is refused
before PyTorch or JAX is loaded.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from repro.errors import UserError


class Spec(BaseModel):
    """A checked, frozen piece of configuration.

    Unknown keys, wrong types and missing values raise one `UserError` that names them all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, protected_namespaces=())

    @classmethod
    def parse(cls, mapping: Mapping[str, Any], where: str) -> Self:
        """Check `mapping`, found in the config under the key `where`."""
        try:
            return cls.model_validate(dict(mapping))
        except ValidationError as error:
            raise UserError("\n".join(_sentences(cls, error, where))) from None


class Family(Spec):
    """A choice among kinds: each subclass has a literal `kind` and names the module that does the work."""

    module: ClassVar[str] = ""

    @classmethod
    def kinds(cls) -> dict[str, type[Self]]:
        """The members by their `kind`."""
        members = {}
        for member in _descendants(cls):
            field = member.model_fields.get("kind")
            if field is not None and field.default is not None:
                members[field.default] = member
        return members

    @classmethod
    def choose(cls, mapping: Mapping[str, Any], where: str) -> Self:
        """Find the member that `mapping["kind"]` names and check the mapping against it."""
        kinds, kind = cls.kinds(), mapping.get("kind")
        if not isinstance(kind, str) or kind not in kinds:
            near, valid = _closest(str(kind), kinds), ", ".join(sorted(kinds))
            raise UserError(f"{where}.kind: got {kind!r}{near}. Valid choices: {valid}")
        return kinds[kind].parse(mapping, where)


def _descendants(cls: type) -> Iterator[Any]:
    for child in cls.__subclasses__():
        yield child
        yield from _descendants(child)


def _closest(word: str, choices: Any) -> str:
    near = difflib.get_close_matches(word, list(choices), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _fields_at(cls: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """The valid keys of the (nested) spec that holds the last element of `location`."""
    current: Any = cls
    for key in location[:-1]:
        field = getattr(current, "model_fields", {}).get(key)
        current = next(iter(_specs_in(field.annotation)), None) if field else current
    return sorted(getattr(current, "model_fields", {}))


def _specs_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _specs_in(inner)


def _sentences(cls: type[BaseModel], error: ValidationError, where: str) -> Iterator[str]:
    for item in error.errors():
        key = ".".join([where, *(str(part) for part in item["loc"])]).strip(".")
        if item["type"] == "extra_forbidden":
            valid = _fields_at(cls, item["loc"])
            yield f"{key}: unknown key{_closest(str(item['loc'][-1]), valid)}. Valid keys: {', '.join(valid)}"
        elif item["type"] == "missing":
            yield f"{key}: a value is required and none was given"
        else:
            yield f"{key}: {item['msg']}, got {item.get('input')!r}"
