"""The page on manipulations: its examples are valid, both spellings mean the same, none is missing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from repro.interventions.specs import ORDER, Manipulation

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "manipulations.md").read_text()
SECTIONS = {
    match[1]: match[2]
    for match in re.finditer(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
}


def block(text: str, language: str) -> str:
    return text.split(f"```{language}\n")[1].split("\n```")[0]


def from_shell(line: str) -> list[dict]:
    """What Hydra makes of the override between the single quotes."""
    value = OverridesParser.create().parse_override(line.split("'")[1]).value()
    assert isinstance(value, list)
    return [{str(key): item for key, item in one.items()} for one in value]


def test_sections_are_all_kinds_in_order_of_application() -> None:
    assert list(SECTIONS) == [kind.model_fields["kind"].default for kind in ORDER]


@pytest.mark.parametrize("kind", SECTIONS)
def test_examples(kind: str) -> None:
    (in_yaml,) = (Manipulation.choose(one, kind) for one in yaml.safe_load(block(SECTIONS[kind], "yaml")))
    (in_shell,) = (Manipulation.choose(one, kind) for one in from_shell(block(SECTIONS[kind], "sh")))
    assert in_yaml == in_shell
    assert in_yaml.model_dump()["kind"] == kind


def test_the_first_example() -> None:
    listed = yaml.safe_load(block(TEXT, "yaml"))["manipulations"]
    assert listed == from_shell(block(TEXT, "sh"))
