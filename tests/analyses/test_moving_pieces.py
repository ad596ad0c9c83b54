"""Feeding heads from other prompts: by hand, from the same prompts, together and alone; and the fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models.tiny_models import tiny

from repro.analyses import moving_pieces
from repro.analyses.specs import Analysis
from repro.data.token_pairs import from_mapping
from repro.errors import UserError
from repro.interventions.lm_edits import At, Replace
from repro.interventions.lm_run import run

HEADS = [f"{layer}.{head}" for layer in range(3) for head in range(4)]
END = 6


def pairs(rows: int = 10):
    random = np.random.default_rng(0)
    clean = random.integers(2, 61, (rows, END + 1))
    corrupt = clean.copy()
    corrupt[:, 1:4] = random.integers(2, 61, (rows, 3))
    made = {
        "clean": clean.tolist(), "corrupt": corrupt.tolist(), "answer": clean[:, 1].tolist(),
        "wrong": clean[:, 2].tolist(), "positions": {"END": END, "S2": 3, "IO": 1},
    }  # fmt: skip
    return from_mapping(made, "test", "0")


def moved(model=None, **values):
    spec = Analysis.choose({"kind": "moving_pieces", "watch": ["2.1", "2.3"], **values}, "analysis")
    return moving_pieces.run(model or tiny("gpt2", "sdpa", torch.float64), pairs(), None, None, spec)


def test_one_head_by_hand():
    model, data = tiny("gpt2", "sdpa", torch.float64), pairs()
    result = moved(model, pieces={"one": [{"heads": ["1.2"], "at": "S2"}]})
    source = run(model, data.corrupt, reads=[At("z", 1)])["z", 1][:, 3, 2]
    edit = Replace(At("z", 1, heads=[2], positions=[3]), source[:, None, None])
    ran = run(model, data.clean, edits=[edit], reads=[At("pattern", 2)])
    rows = torch.arange(len(data))
    logits = ran.logits[:, END]
    expected = (logits[rows, data.answer] - logits[rows, data.wrong]).numpy()
    np.testing.assert_allclose(result.arrays["logit_difference"].values[1], expected, atol=1e-10)
    look = ran["pattern", 2][:, 1, END, 1].mean()
    assert result.arrays["attention"].values[1, 0, 0] == pytest.approx(float(look), abs=1e-10)
    assert result.scalars["one.logit_difference"] == pytest.approx(expected.mean())


def test_queries_of_the_same_prompts_change_nothing():
    data = pairs()
    same = from_mapping(
        {
            "clean": data.clean.tokens.tolist(), "corrupt": data.clean.tokens.tolist(),
            "answer": data.answer.tolist(), "wrong": data.wrong.tolist(), "positions": {"END": END},
        }, "test", "0",
    )  # fmt: skip
    feeds = [{"heads": HEADS, "site": site} for site in ("q", "k", "v", "z")]
    spec = Analysis.choose({"kind": "moving_pieces", "pieces": {"all": feeds}}, "analysis")
    result = moving_pieces.run(tiny("gpt2", "sdpa", torch.float64), same, None, None, spec)
    values = result.arrays["logit_difference"].values
    np.testing.assert_allclose(values[1], values[0], atol=1e-10)
    assert result.scalars["all.ratio"] == pytest.approx(1)


def test_pieces_are_made_together_and_batches_do_not_matter():
    both = [{"heads": ["0.1"], "at": "S2"}, {"heads": ["1.0", "1.3"], "site": "k", "at": "IO"}]
    small, large = (moved(pieces={"both": both}, batch=batch) for batch in (3, 64))
    for name, array in small.arrays.items():
        np.testing.assert_allclose(array.values, large.arrays[name].values, atol=1e-10)
    alone = moved(pieces={"first": both[:1], "second": both[1:]}).arrays["logit_difference"].values
    assert np.abs(small.arrays["logit_difference"].values[1] - alone[1]).max() > 1e-6


def test_the_fit_of_two_pieces_by_two_signals_is_exact():
    fit = {"original": {"pos": 1, "tok": 1}, "one": {"pos": -1, "tok": 1}}
    result = moved(pieces={"one": [{"heads": ["2.0", "2.1"]}]}, fit=fit)
    plain, one = (result.scalars[f"{name}.logit_difference"] for name in ("original", "one"))
    assert result.scalars["fit.pos"] == pytest.approx((plain - one) / 2)
    assert result.scalars["fit.tok"] == pytest.approx((plain + one) / 2)
    assert result.scalars["fit.error"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"pieces": {"a": [{"heads": ["3.0"]}]}}, "layers 0 to 2"),
        ({"pieces": {"a": [{"heads": ["0.0"], "at": "S9"}]}}, "These prompts have: END"),
        ({"pieces": {"a": [{"heads": ["0.0"], "chain": ["IO"]}]}}, "plain token ids do not have"),
        ({"pieces": {"original": [{"heads": ["0.0"]}]}}, "Give another name"),
        ({"pieces": {"a": [{"heads": ["0.0"]}]}, "fit": {"b": {"pos": 1}}}, "is no piece"),
    ],
)
def test_bad_pieces_are_refused(values, says):
    with pytest.raises(UserError, match=says):
        moved(**values)
