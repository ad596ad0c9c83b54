"""Class names become heads: the published ones on a model of the published shape, else those found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models.tiny_models import tiny

from repro.analyses.named_heads import in_heads
from repro.analyses.specs import Analysis
from repro.data.token_pairs import from_mapping
from repro.errors import NotApplicable, UserError

PUBLISHED = {
    "movers": {"heads": ["2.1", "2.3"], "at": "END"},
    "early": {"heads": ["0.0"], "at": "S2"},
}
SHAPE = {"family": "gpt2", "depth": 3, "heads": 4}


def pairs():
    random = np.random.default_rng(0)
    clean, corrupt = (random.integers(2, 61, (6, 7)).tolist() for _ in range(2))
    made = {
        "clean": clean, "corrupt": corrupt, "answer": [row[1] for row in clean],
        "wrong": [row[2] for row in clean], "positions": {"END": 6, "S2": 4},
    }  # fmt: skip
    return from_mapping(made, "test", "0")


def asked(kind: str, model: str = "gpt2", **values):
    whole = {"kind": kind, "published": PUBLISHED, "circuit_of": SHAPE, **values}
    return in_heads(Analysis.choose(whole, "analysis"), tiny(model, "sdpa", torch.float64), pairs())


def test_published_classes_stand_for_their_heads():
    spec, named = asked(
        "path_patching", receivers=["class:movers.q", "2.0.q", "class:movers.k@S2"],
        groups={"both": ["class:movers", "1.*"]},
    )  # fmt: skip
    assert spec.receivers == ["2.1.q", "2.3.q", "2.0.q", "2.1.k@S2", "2.3.k@S2"]
    assert spec.groups == {"both": ["2.1", "2.3", "1.0", "1.1", "1.2", "1.3"]}
    assert named == {"movers": "2.1, 2.3", "early": "0.0"}


def test_every_analysis_takes_them():
    spec, _ = asked("logit_difference", heads=["class:movers"])
    assert spec.heads == ["2.1", "2.3"]
    spec, _ = asked("knockouts", sets={"movers": ["class:movers@END"]}, direct_after=["movers"])
    assert spec.sets["movers"].nodes == ["2.1@END", "2.3@END"] and spec.direct_after == ["movers"]
    spec, _ = asked(
        "moving_pieces", pieces={"a": [{"heads": ["class:early"], "at": "S2"}]}, watch=["class:movers"]
    )
    assert spec.pieces["a"][0].heads == ["0.0"] and spec.watch == ["2.1", "2.3"]
    tree = {"h": {"children": {"movers": {"nodes": ["class:movers"], "children": {
        "early": {"nodes": ["class:early"], "at": "S2", "through": "k"}}}}}}  # fmt: skip
    spec, _ = asked("causal_scrubbing", hypotheses=tree)
    movers = spec.hypotheses["h"].children["movers"]
    assert movers.nodes == ["2.1", "2.3"] and movers.children["early"].nodes == ["0.0"]


def test_keys_and_values_count_shared_heads():
    shape = {"family": "llama", "depth": 3, "heads": 4}
    spec, _ = asked(
        "path_patching", "llama", circuit_of=shape, receivers=["class:movers.v@S2", "class:movers.q"]
    )
    assert spec.receivers == ["2.0.v@S2", "2.1.v@S2", "2.1.q", "2.3.q"]
    spec, _ = asked(
        "moving_pieces", "llama", circuit_of=shape, pieces={"a": [{"heads": ["class:movers"], "site": "k"}]}
    )
    assert spec.pieces["a"][0].heads == ["2.0", "2.1"]


def test_without_class_names_nothing_is_searched():
    spec, named = asked("logit_difference", heads=["1.1"], circuit_of=None)
    assert spec.heads == ["1.1"] and named == {}


def test_on_another_shape_the_strongest_heads_stand_in():
    search = {"steps": [{"name": "movers"}], "threshold": 1e9, "at_most": 2}
    spec, named = asked(
        "logit_difference", heads=["class:movers"], circuit_of=None, search=search | {"at_least": 2}
    )
    assert len(spec.heads) == 2 and named["movers"] == ", ".join(spec.heads)


def test_what_stands_for_no_head_is_left_out_or_ends_the_question():
    search = {"steps": [{"name": "movers"}]}
    pieces = {"a": [{"heads": ["class:movers"]}], "b": [{"heads": ["class:early"]}]}
    fit = {"original": {"x": 1}, "a": {"x": 2}, "b": {"x": 3}}
    spec, _ = asked("moving_pieces", circuit_of=None, search=search, pieces=pieces, fit=fit)
    assert list(spec.pieces) == ["a"] and list(spec.fit) == ["original", "a"]
    spec, _ = asked("path_patching", circuit_of=None, search=search, groups={"early": ["class:early"]})
    assert spec.groups == {}
    with pytest.raises(NotApplicable, match="class:early.q stands for no head.*gave: movers"):
        asked("path_patching", circuit_of=None, search=search, receivers=["class:early.q"])


def test_unknown_classes_of_a_given_circuit_are_refused():
    with pytest.raises(UserError, match="got class 'late'. Classes of the published circuit: movers, early"):
        asked("logit_difference", heads=["class:late"])
