"""Iterative path patching: each step is the path patching it says it is, behind the heads found before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from interventions.path_patching_cases import model_of, pairs_of

from repro.analyses import iterative_path_patching, path_patching
from repro.analyses.path_patching_specs import IterativePathPatching, PathPatching
from repro.analyses.specs import Analysis
from repro.errors import UserError
from repro.results import Result


def found(kind: str = "gpt2", **settings: Any) -> Result:
    spec = IterativePathPatching.parse(settings, "analysis")
    return iterative_path_patching.run(model_of(kind), pairs_of(), None, None, spec)


def plain(kind: str = "gpt2", **settings: Any) -> Result:
    spec = PathPatching.parse(settings, "analysis")
    return path_patching.run(model_of(kind), pairs_of(), None, None, spec)


@pytest.mark.parametrize("how", [{}, {"mlps": "freeze", "downstream": "filter"}])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_each_step_is_path_patching_through_the_heads_found_before(kind: str, how: dict[str, Any]) -> None:
    steps = [{"letter": "q", "negative": 1, "positive": 2}, {"letter": "v", "position": "S2", "negative": 2}]
    result = found(kind, negative=2, positive=1, steps=steps, **how)
    effect = result.arrays["effect"]
    assert effect.axes["step"] == ["logits", "1.q", "2.v"][: effect.values.shape[0]]
    first = plain(kind, **how).arrays["effect"].values
    np.testing.assert_allclose(effect.values[0], first, rtol=0, atol=1e-12)
    order = np.argsort(first, axis=None)
    expected = {f"{i // 4}.{i % 4}" for i in [*order[:2], order[-1]]}
    names = result.arrays["found.0"].values.tolist()
    assert set(names) == expected
    sizes = [abs(first[tuple(map(int, name.split(".")))]) for name in names]
    assert sizes == sorted(sizes, reverse=True)

    through = [f"{name}.q" for name in sorted(names)]
    second = plain(kind, receivers=through, **how).arrays
    np.testing.assert_allclose(effect.values[1], second["effect"].values, rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        result.arrays["mlp_per_prompt"].values[1], second["mlp_per_prompt"].values, rtol=0, atol=1e-12
    )
    if len(effect.values) == 3:
        share = 2 if kind == "llama" else 1
        heads = [name.split(".") for name in sorted(result.arrays["found.1"].values.tolist())]
        inputs = list(dict.fromkeys(f"{layer}.{int(head) // share}.v@S2" for layer, head in heads))
        third = plain(kind, receivers=inputs, then=[through], **how).arrays["effect"].values
        np.testing.assert_allclose(effect.values[2], third, rtol=0, atol=1e-12)
    else:
        assert "nothing is below" in result.notes["end"]


def test_it_ends_where_nothing_is_below() -> None:
    """Three layers: after three steps at most the heads found are in the first layer."""
    result = found(steps=[{"letter": "q"}] * 9, negative=2)
    assert len(result.arrays["effect"].values) <= 3 and "nothing is below" in result.notes["end"]
    steps = result.arrays["per_prompt"].axes["step"]
    assert isinstance(steps, list)
    for step in range(1, len(steps)):
        receivers = result.arrays[f"found.{step - 1}"].values.tolist()
        top = max(int(name.split(".")[0]) for name in receivers)
        assert (result.arrays["effect"].values[step, top:] == 0).all()
        assert result.scalars[f"unreached.{step}"] == (3 - top) * 4


def test_settings_that_find_nothing_are_refused() -> None:
    for settings in ({"steps": [{"letter": "z"}]}, {"steps": [{"letter": "q", "negative": 0}]}):
        with pytest.raises(UserError):
            Analysis.choose({"kind": "iterative_path_patching", **settings}, "analysis")
