"""Settings of the analyses of attributes: windows as released, what is hashed, refusals, what it costs."""

from __future__ import annotations

from pathlib import Path

import pytest

from repro.analyses.attribute_specs import (
    AttributeExtraction,
    AttributesRate,
    EarlyPatching,
    SublayerKnockout,
    VocabularyWeights,
)
from repro.costs import Cost
from repro.data.fact_specs import FactsToy, PromptsFile
from repro.data.paragraph_specs import Paragraphs
from repro.errors import UserError
from repro.models.shapes import Shape

SHAPE = Shape("gpt2", 4, 2, 2, 8, 4, 32, 50, positions=16)
READ = 2 * 50 * 8  # operations of one vector read through E


def test_windows_are_those_of_the_released_notebook() -> None:
    """range(b, min(b + 10 + 1, 40)): eleven layers, fewer at the end."""
    spec = SublayerKnockout()
    for start in range(40):
        assert spec.window(start) == list(range(start, min(start + 10 + 1, 40)))
    assert len(spec.window(0)) == 11 and spec.window(39) == [39]
    assert SublayerKnockout(inclusive=False).window(3) == list(range(3, 13))


def test_ways_of_reweighting() -> None:
    assert AttributeExtraction().ways == ["released", "renormalised"]
    assert AttributeExtraction(reweight="renormalised").ways == ["renormalised", "released"]
    assert AttributeExtraction(compare=False).ways == ["released"]


def test_what_changes_no_number_is_not_hashed(tmp_path: Path) -> None:
    for kind in (AttributeExtraction, EarlyPatching, SublayerKnockout, VocabularyWeights):
        assert kind(batch=1).fingerprint() == kind(batch=2).fingerprint()
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("one paragraph\n")
    (tmp_path / "c.txt").write_text("another\n")
    prints = [
        AttributesRate(paragraphs=Paragraphs(path=str(tmp_path / name), cache=name)).fingerprint()
        for name in ("a.txt", "b.txt", "c.txt")
    ]
    assert prints[0] == prints[1] != prints[2]


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(UserError, match="pool of 10"):
        AttributesRate.parse({"pool": 10, "top": 20}, "analysis")
    with pytest.raises(UserError, match="sources"):
        EarlyPatching.parse({"sources": []}, "analysis")
    with pytest.raises(UserError, match="analysis.positions"):
        AttributesRate.parse({"positions": ["middle"]}, "analysis")


@pytest.mark.parametrize(
    ("spec", "vectors"),
    [
        (AttributeExtraction(), 4 * (3 + 24)),
        (AttributeExtraction(compare=False), 4 * (3 + 12)),
        (AttributesRate(static=False), 4 * 5),
        (SublayerKnockout(layer=3), 1 + 3 * 2 * 3),
        (SublayerKnockout(layer=3, compare=False), 7),
        (VocabularyWeights(), 4 + 2 * 2),
    ],
)
def test_vectors_that_are_read_through_e_are_counted(spec: AttributesRate, vectors: int) -> None:
    cost: Cost = spec.cost(SHAPE, FactsToy(n=10))
    assert cost.flops == 10 * vectors * READ
    assert [work.sequences for work in cost.works[:2]] == [10, 10]
    assert "taken as 1000 prompts" in spec.cost(SHAPE, PromptsFile(path="x")).lines[-1]


def test_early_states_cost_projections_and_no_passes() -> None:
    cost = EarlyPatching(sources=[0, 1]).cost(SHAPE, FactsToy(n=10))
    assert len(cost.works) == 2  # answers and clean readings
    # Of two sources in four layers: keys of ten tokens; q, k and v of the last; a row of W_V and one of W_O
    # for each of three sets. Each is a quarter of attention's weights.
    own = 2 * (10 + 3 + 3 + 3) * 2 * (1 / 4) * SHAPE.attention_weights * 4
    assert cost.flops == pytest.approx(10 * (own + 4 * 7 * READ))
