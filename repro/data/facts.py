"""Facts of all kinds: prompts about subjects, checked, and made token ids when a tokenizer is known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repro.data import facts_records as records
from repro.data.base_specs import sha256_of
from repro.data.download import download
from repro.data.fact_specs import KNOWN_CONTENT, CounterFact, Facts, FactsToy, Known1000, PromptsFile
from repro.data.facts_records import Fact
from repro.data.facts_tokens import FactBatch, tokenise
from repro.data.facts_toy import FactWorld
from repro.errors import UserError


@dataclass(frozen=True)
class FactData:
    """Prompts about subjects. world: the small world that they are of, if they are."""

    spec: Facts
    facts: tuple[Fact, ...]
    source: str
    sha256: str
    is_published: bool = False
    world: FactWorld | None = None

    def __len__(self) -> int:
        return len(self.facts)

    @property
    def kind(self) -> str:
        """Which kind of data this is, as in the config."""
        return str(getattr(self.spec, "kind"))  # noqa: B009

    def tokenise(self, tokenizer: Any = None) -> FactBatch:
        """All prompts as token ids of this tokenizer; prompts that are token ids need none."""
        return tokenise(self.facts, tokenizer, self.spec.bos, self.spec.ranges)


def load(spec: Facts) -> FactData:
    """The prompts of a spec, checked. Raises `UserError` that names the line of a record that is refused."""
    if isinstance(spec, FactsToy):
        return _toy(spec)
    if isinstance(spec, Known1000):
        return _known(spec)
    if isinstance(spec, CounterFact):
        path = Path(spec.path).expanduser() if spec.path else None
        found, checksum = _of_file(
            path or download(spec.url, spec.sha256 or "", spec.cache), records.counterfact
        )
        return FactData(spec, _first(found, spec.n), f"CounterFact, {path or spec.url}", checksum)
    assert isinstance(spec, PromptsFile) and spec.path is not None
    found, checksum = _of_file(Path(spec.path).expanduser(), records.own)
    return FactData(spec, _first(found, spec.n), str(spec.path), checksum)


def _first(facts: list[Fact], n: int | None) -> tuple[Fact, ...]:
    return tuple(facts[:n])


def _of_file(path: Path, parse: Any) -> tuple[list[Fact], str]:
    checksum = sha256_of(path)
    return records.read(path, parse), checksum


def _known(spec: Known1000) -> FactData:
    if spec.path:
        path = Path(spec.path).expanduser()
        sha256_of(path)  # says what is wrong if there is none
    else:
        wanted = spec.accept_checksum or spec.sha256
        path = download(spec.url, wanted, spec.cache, "data.accept_checksum", checksum=_content)
    found = records.read(path, records.known)
    numbers = [fact.number for fact in found]
    if len(set(numbers)) < len(numbers):
        twice = next(number for number in numbers if numbers.count(number) > 1)
        raise UserError(f"data.path: {path}: known_id {twice} is there twice. Give every record its own")
    content = records.content_sha256(found)
    published = content == KNOWN_CONTENT and spec.n is None
    return FactData(spec, _first(found, spec.n), spec.path or spec.url, content, published)


def _content(path: Path) -> str:
    """Checksum of what the records say; of the bytes where they cannot be read."""
    try:
        return records.content_sha256(records.read(path, records.known))
    except UserError:
        return sha256_of(path)


def _toy(spec: FactsToy) -> FactData:
    world = FactWorld(spec.subjects, spec.world_seed, spec.withheld_share)
    facts = tuple(world.prompts(spec.templates, spec.n, spec.seed))
    source = f"small world of {spec.subjects} subjects, {len(facts)} prompts of {spec.templates} templates"
    return FactData(spec, facts, source, records.content_sha256(facts), False, world)
