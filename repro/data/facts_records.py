"""Records about subjects and their attributes, read from files; faults are named with their line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repro.errors import UserError

SEVEN = ("known_id", "subject", "attribute", "template", "prediction", "prompt", "relation_id")


@dataclass(frozen=True)
class Fact:
    """One prompt about a subject.

    number: known_id, case_id, or place in the file. where: file and line, for messages. prompt and subject
    are texts; or there are token ids, with the subject's as half-open range `span`. attribute: the word that
    should follow. template: with {} for the subject. prediction: what a model went on to say.
    """

    number: int
    where: str
    prompt: str | None = None
    subject: str | None = None
    attribute: str | None = None
    template: str | None = None
    relation: str | None = None
    prediction: str | None = None
    tokens: tuple[int, ...] | None = None
    span: tuple[int, int] | None = None

    @property
    def characters(self) -> tuple[int, int]:
        """Where the subject stands in the prompt, half-open: see `beginning`."""
        assert self.prompt is not None and self.subject is not None
        begin = beginning(self.subject, self.prompt)
        return begin, begin + len(self.subject)


def beginning(subject: str, text: str) -> int:
    """Where a subject begins in a text: first as a whole word, not "Al" in "Alan"; else anywhere."""
    begin = text.index(subject)
    at = begin
    while at >= 0:
        end = at + len(subject)
        joined = (text[max(0, at - 1) : at] + subject[0]).isalnum() and at > 0
        goes_on = end < len(text) and (subject[-1] + text[end]).isalnum()
        if not (joined or goes_on):
            return at
        at = text.find(subject, at + 1)
    return begin


def read(path: Path, parse: Callable[[Mapping[str, Any], int, str], Fact]) -> list[Fact]:
    """All records of a JSON list or of a file with one JSON object a line, in order.

    parse: from an object, its place (from 0) and where it stands. Raises `UserError` with the line for
    what is no JSON, no object, or refused by `parse`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"data.path: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"data.path: {path}: expected UTF-8 text; {error}") from None
    found = []
    for place, (line, item) in enumerate(objects(text, str(path))):
        where = f"{path}, line {line}"
        if not isinstance(item, dict):
            raise UserError(f"{where}: expected an object {{...}} for each record; got {_short(item)}")
        found.append(parse(item, place, where))
    if not found:
        raise UserError(f"data.path: {path}: expected at least one record, and there is none")
    return found


def objects(text: str, path: str) -> Iterator[tuple[int, Any]]:
    """Each record with the number of the line that it begins in."""
    decoder, at, in_list = json.JSONDecoder(), _skip(text, 0, ""), False
    if text[at : at + 1] == "[":
        at, in_list = _skip(text, at + 1, ""), True
    seen, line = 0, 1
    while at < len(text) and not (in_list and text[at] == "]"):
        line, seen = line + text.count("\n", seen, at), at
        try:
            item, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {error.lineno}: no JSON: {error.msg}") from None
        yield line, item
        at = _skip(text, at, "," if in_list else "")
    if in_list and at >= len(text):
        raise UserError(f"{path}: the list of records is not closed. Is the file whole?")


def _skip(text: str, at: int, more: str) -> int:
    while at < len(text) and (text[at].isspace() or text[at] in more or text[at] == "\ufeff"):
        at += 1
    return at


def known(item: Mapping[str, Any], place: int, where: str) -> Fact:
    """A record of known_1000: the seven fields (more are allowed), the subject once or more in the prompt."""
    _require(item, SEVEN, where)
    _check(isinstance(item["known_id"], int), where, "known_id", "an integer", item["known_id"])
    for name in SEVEN[1:]:
        _text(item, name, where)
    _check(item["template"].count("{}") == 1, where, "template", "text with one {}", item["template"])
    return _checked(
        Fact(
            item["known_id"], where, item["prompt"], item["subject"], item["attribute"], item["template"],
            item["relation_id"], item["prediction"],
        )
    )  # fmt: skip


def counterfact(item: Mapping[str, Any], place: int, where: str) -> Fact:
    """A record of CounterFact: only the true fact is taken. Also in the flattened form."""
    if "requested_rewrite" in item:
        inner = item["requested_rewrite"]
        fits = isinstance(inner, dict) and isinstance(inner.get("target_true"), dict)
        _check(fits, where, "requested_rewrite", "an object with target_true", inner)
        _require(inner, ("subject", "prompt", "relation_id", "target_true"), where)
        template, relation = _text(inner, "prompt", where), _text(inner, "relation_id", where)
        subject, attribute = _text(inner, "subject", where), _text(inner["target_true"], "str", where)
    else:
        _require(item, ("case_id", "prompt", "subject", "ground_truth"), where)
        subject, attribute, relation = _text(item, "subject", where), _text(item, "ground_truth", where), None
        prompt = _text(item, "prompt", where)
        _check(subject in prompt, where, "prompt", f"text with the subject {subject!r} in it", prompt)
        begin = beginning(subject, prompt)
        template = f"{prompt[:begin]}{{}}{prompt[begin + len(subject) :]}"
    _check(template.count("{}") == 1, where, "prompt", "a template with one {}", template)
    number = item.get("case_id", place)
    _check(isinstance(number, int), where, "case_id", "an integer", number)
    prompt = template.replace("{}", subject)
    return _checked(Fact(number, where, prompt, subject, attribute.strip(), template, relation))


def own(item: Mapping[str, Any], place: int, where: str) -> Fact:
    """A record of the user's own: prompt and subject as texts, or token ids and a range of them."""
    attribute = item.get("attribute")
    if attribute is not None:
        attribute = _text(item, "attribute", where).strip()
    if "tokens" in item:
        return _own_tokens(item, place, where, attribute)
    _require(item, ("prompt", "subject"), where)
    prompt, subject = _text(item, "prompt", where), _text(item, "subject", where)
    return _checked(Fact(place, where, prompt, subject, attribute, relation=item.get("relation_id")))


def _own_tokens(item: Mapping[str, Any], place: int, where: str, attribute: str | None) -> Fact:
    tokens, span = item["tokens"], item.get("subject")
    fits = isinstance(tokens, list) and tokens and all(map(_is_id, tokens))
    _check(fits, where, "tokens", "a list of integers of at least 0", tokens)
    count = len(tokens)
    fits = isinstance(span, list) and len(span) == 2 and all(map(_is_id, span)) and span[0] < span[1] <= count
    _check(fits, where, "subject", f"[start, end] with 0 <= start < end <= {count} (end excluded)", span)
    assert span is not None
    prompt = _text(item, "prompt", where) if "prompt" in item else None
    return Fact(
        place, where, prompt, None, attribute, tokens=tuple(tokens), span=(span[0], span[1]),
        relation=item.get("relation_id"),
    )  # fmt: skip


def content_sha256(facts: Sequence[Fact]) -> str:
    """Checksum of the seven fields of records in order of their number, however the file is laid out."""
    rows = [
        [f.number, f.subject, f.attribute, f.template, f.prediction, f.prompt, f.relation]
        for f in sorted(facts, key=lambda fact: fact.number)
    ]
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()


def _checked(fact: Fact) -> Fact:
    assert fact.prompt is not None and fact.subject is not None
    if fact.subject not in fact.prompt:
        raise UserError(
            f"{fact.where}: the subject {fact.subject!r} is not in the prompt {fact.prompt!r}. Write it as it"
            " stands there, letter by letter"
        )
    return fact


def _require(item: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    missing = [name for name in names if name not in item]
    if missing:
        raise UserError(
            f"{where}: expected the fields {', '.join(names)}; missing: {', '.join(missing)};"
            f" got {', '.join(map(str, item)) or 'none'}"
        )


def _text(item: Mapping[str, Any], name: str, where: str) -> str:
    value = item.get(name)
    _check(isinstance(value, str) and value.strip(), where, name, "text that is not empty", value)
    assert isinstance(value, str)
    return value


def _check(fits: Any, where: str, name: str, expected: str, got: Any) -> None:
    if not fits:
        raise UserError(f"{where}: {name}: expected {expected}; got {_short(got)}")


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
