"""The notebooks' random stream: published prompts and flips, row by row (criterion D2, section 1.3)."""

from __future__ import annotations

import pytest

from repro.data import ioi
from repro.data.ioi_remix import Notebook
from repro.data.specs import Data, IoiRemix
from repro.errors import UserError

FIRST = [
    ("Matthew", "Alicia", "hospital", "basketball"),
    ("Jason", "Alicia", "garden", "kiss"),
    ("Ashley", "Matthew", "garden", "basketball"),
]


def test_prompts_and_flips_in_the_notebooks_order() -> None:
    notebook = Notebook()
    prompts = notebook.prompts
    assert len(prompts) == 50
    assert [(p.s1, p.io, p.place, p.object) for p in prompts.prompts[:3]] == FIRST
    flipped = notebook.flip(prompts, "IO")
    assert [p.io for p in flipped.prompts[:3]] == ["Kevin", "Rebecca", "Timothy"]
    flipped = notebook.flip(prompts, "S")
    assert [p.s1 for p in flipped.prompts[:3]] == ["Kenneth", "Andrew", "Alicia"]
    both = notebook.flip(notebook.flip(prompts, "IO"), "S").prompts[:3]
    assert [(p.io, p.s2) for p in both] == [
        ("Kenneth", "Andrew"),
        ("Andrew", "Matthew"),
        ("Matthew", "Alicia"),
    ]
    assert both[2].io == prompts.prompts[2].io  # the old name came back, as in the notebook
    order = notebook.flip(prompts, "order")
    assert order.texts[0].startswith("Then, Alicia and Matthew went") and order.prompts[0].order == "ABBA"


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        (["IO"], [("Kevin", "Matthew"), ("Rebecca", "Jason"), ("Timothy", "Ashley")]),
        (["S"], [("Alicia", "Kenneth"), ("Alicia", "Andrew"), ("Matthew", "Alicia")]),
        (["IO", "S"], [("Kenneth", "Andrew"), ("Andrew", "Matthew"), ("Matthew", "Alicia")]),
    ],
)
def test_the_same_from_a_config(chain: list[str], expected: list[tuple[str, str]]) -> None:
    data = ioi.load(IoiRemix(corruption=chain))
    assert [(p.io, p.s2) for p in data.corrupt.prompts[:3]] == expected
    assert [(p.s1, p.io, p.place, p.object) for p in data.prompts.prompts[:3]] == FIRST
    assert data.is_published


def test_whether_the_stream_continues_can_be_said() -> None:
    fresh = ioi.load(IoiRemix(corruption=["IO"], continues=False)).corrupt.prompts[:2]
    assert [p.io for p in fresh] == ["Kenneth", "Andrew"]


def test_families_and_their_flips() -> None:
    notebook = Notebook(8)
    abc = notebook.flip(notebook.prompts, "S2")
    assert all(p.is_abc for p in abc.prompts)
    for name, field in (("IO1", "s1"), ("IO2", "io"), ("S", "s2")):
        flipped = notebook.flip(abc, name)
        for old, new in zip(abc.prompts, flipped.prompts, strict=True):
            assert new.is_abc and {**vars(old), field: vars(new)[field]} == vars(new)
    swapped = notebook.flip(abc, "exchange").prompts[0]
    assert (swapped.io, swapped.s1) == (abc.prompts[0].s1, abc.prompts[0].io)
    with pytest.raises(UserError, match="use exchange"):
        notebook.flip(abc, "order")
    with pytest.raises(UserError, match="flip S1 or S2 first"):
        notebook.flip(notebook.prompts, "IO1")
    with pytest.raises(UserError, match="Valid flips: IO, S, S1"):
        Data.choose({"kind": "ioi_remix", "corruption": ["ABC"]}, "data")
