"""Path patching as an analysis: what it saves, against the definition, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interventions.path_patching_cases import model_of, pairs_of
from models.tiny_models import tiny

from repro import config
from repro.analyses import path_patching
from repro.analyses.path_patching import means, strongest
from repro.analyses.path_patching_specs import PathPatching
from repro.analyses.specs import Analysis
from repro.errors import UserError
from repro.interventions.path_patching_definition import Definition
from repro.interventions.path_patching_nodes import Sender, parse_receiver
from repro.pipeline import run as walk
from repro.results import NamedArray, Result, load
from repro.shards import Part

SETTINGS: dict[str, dict[str, Any]] = {
    "logits": {},
    "frozen": {"mlps": "freeze"},
    "queries": {"receivers": ["1.1.q", "2.0.q"]},
    "filtered": {"receivers": ["2.1.v@S2"], "downstream": "filter", "mlps": "freeze"},
    "everywhere": {"receivers": ["1.0.k"], "positions": "all"},
    "chain": {"receivers": ["1.1.v@S2"], "then": [["2.0.q@END", "2.1.k@S2"]]},
}


def found(pairs: Any = None, model: Any = None, **settings: Any) -> Result:
    spec = PathPatching.parse(settings, "analysis")
    return path_patching.run(model or model_of("gpt2"), pairs or pairs_of(), None, None, spec)


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_prompt_of_every_sender_is_as_defined(setting: str) -> None:
    settings = SETTINGS[setting]
    model, pairs = model_of("gpt2"), pairs_of()
    result = found(pairs, model, **settings, groups={"two": ["0.1", "mlp1"]})
    spec = PathPatching.parse(settings, "analysis")
    stages = [[parse_receiver(one) for one in stage] for stage in spec.stages]
    definition = Definition(
        model, pairs, stages, positions=spec.positions, mlps=spec.mlps, downstream=spec.downstream
    )
    baseline = definition.baseline()
    np.testing.assert_allclose(result.arrays["baseline"].values, baseline, rtol=0, atol=1e-9)
    per_prompt, mlps = result.arrays["per_prompt"], result.arrays["mlp_per_prompt"]
    assert list(per_prompt.axes) == ["layer", "head", "prompt"] and list(mlps.axes) == ["layer", "prompt"]
    for layer in range(3):
        for head in range(4):
            expected = definition([Sender(layer, head)]) - baseline
            np.testing.assert_allclose(per_prompt.values[layer, head], expected, rtol=0, atol=1e-9)
        expected = definition([Sender(layer)]) - baseline
        np.testing.assert_allclose(mlps.values[layer], expected, rtol=0, atol=1e-9)
    expected = definition([Sender(0, 1), Sender(1)]) - baseline
    np.testing.assert_allclose(result.arrays["group_per_prompt"].values[0], expected, rtol=0, atol=1e-9)
    assert result.scalars["group.two"] == pytest.approx(expected.mean().item())


def test_means_errors_and_percent() -> None:
    values = NamedArray(np.array([[1.0, 3.0], [-2.0, -2.0]]), {"layer": 2, "prompt": 2}, "logit")
    made = means(values, np.array([3.0, 5.0]))
    assert made["effect"].values.tolist() == [2.0, -2.0]
    assert made["effect_percent"].values.tolist() == [50.0, -50.0] and made["effect_percent"].unit == "%"
    assert made["effect_se"].values.tolist() == [1.0, 0.0]
    one = means(NamedArray(np.ones((2, 1)), {"layer": 2, "prompt": 1}, "logit"), np.array([2.0]))
    assert np.isnan(one["effect_se"].values).all()


def test_strongest_heads_in_order() -> None:
    effect = np.array([[0.0, -3.0, 0.5], [2.0, 0.1, -4.0]])
    assert strongest(effect, 2) == {"most_negative": ["1.2", "0.1"], "most_positive": ["1.0", "0.2"]}


def test_heads_not_below_a_receiver_are_exactly_0() -> None:
    result = found(receivers=["1.1.q", "1.0.v@S2"])
    assert (result.arrays["per_prompt"].values[1:] == 0).all()
    assert (result.arrays["effect"].values[0] != 0).all() and (
        result.arrays["mlp_effect"].values[1:] == 0
    ).all()


@pytest.mark.parametrize("setting", SETTINGS)
def test_parts_over_prompts_make_the_whole(setting: str) -> None:
    """Beyond rounding: how many prompts stand in one product differs."""
    pairs, model = pairs_of(lengths=(7, 9, 8, 6, 9)), model_of("llama")
    spec = PathPatching.parse(SETTINGS[setting], "analysis")
    whole = path_patching.run(model, pairs, None, None, spec)
    for count in (2, 5):
        parts = [path_patching.run_part(model, pairs, None, spec, Part(i, count)) for i in range(count)]
        merged = path_patching.merge(parts, spec)
        assert merged.notes == whole.notes and merged.arrays.keys() == whole.arrays.keys()
        for name, array in whole.arrays.items():
            if array.values.dtype.kind == "f":
                np.testing.assert_allclose(merged.arrays[name].values, array.values, rtol=1e-9, atol=1e-12)
        assert merged.scalars == pytest.approx(whole.scalars)
    with pytest.raises(UserError, match="there are only 5"):
        path_patching.run_part(model, pairs, None, spec, Part(0, 6))


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "letter": ({"receivers": ["9.9.z"]}, "letter q, k or v"),
    "text": ({"receivers": "9.9.q"}, "logits"),
    "none": ({"receivers": []}, "receivers"),
    "mlps": ({"mlps": "frozen"}, "recompute"),
    "float head": ({"groups": {"a": [9.1]}}, "without quotes"),
    "after the logits": ({"then": [["1.0.q"]]}, "nothing comes after the logits"),
    "downwards": ({"receivers": ["2.0.q"], "then": [["1.0.q"]]}, "lower layers first"),
    "first layer": (
        {"receivers": ["0.0.q", "0.1.v"]},
        "^receivers: .*the embedding as a sender: groups={embedding: .embedding.}$",
    ),
    "above": ({"receivers": ["1.0.q"], "groups": {"a": ["2.0"]}}, "above receivers"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_refused_before_anything_is_loaded(case: str) -> None:
    settings, message = BAD[case]
    with pytest.raises(UserError, match=message):
        Analysis.choose({"kind": "path_patching", **settings}, "analysis")


def test_the_embedding_sends_into_the_first_layer() -> None:
    result = found(receivers=["0.0.q"], groups={"embedding": ["embedding"]})
    assert (result.arrays["per_prompt"].values == 0).all() and result.scalars["group.embedding"] != 0


def test_rows_are_no_part_of_a_runs_hash() -> None:
    spec = PathPatching.parse({}, "analysis")
    assert spec.fingerprint() == PathPatching.parse({"rows": 8}, "analysis").fingerprint()
    assert spec.fingerprint() != PathPatching.parse({"mlps": "freeze"}, "analysis").fingerprint()


def test_data_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="Valid choices: S1, S2, END"):
        found(receivers=["2.0.q"], positions="IO")
    with pytest.raises(UserError, match="layers 0 to 2"):
        found(receivers=["3.0.q"])
    with pytest.raises(UserError, match="language model"):
        path_patching.run(None, pairs_of(), None, None, PathPatching.parse({}, "analysis"))
    with pytest.raises(UserError, match="needs prompts"):
        path_patching.run(model_of("gpt2"), None, None, None, PathPatching.parse({}, "analysis"))


def test_on_a_folder_and_token_ids_of_ones_own(tmp_path: Path) -> None:
    """The whole walk from the command line to arrays.npz."""
    tiny("gpt2").hf.save_pretrained(tmp_path / "model")
    pairs = pairs_of(lengths=(8, 8, 8))
    content = {
        "clean": pairs.clean.tokens.tolist(), "corrupt": pairs.corrupt.tokens.tolist(),
        "answer": pairs.answer.tolist(), "wrong": pairs.wrong.tolist(),
        "positions": {name: at.tolist() for name, at in pairs.positions.items()},
    }  # fmt: skip
    (tmp_path / "pairs.json").write_text(json.dumps(content))
    composed = config.compose(
        ["paper/ioi=path_patching", "model=hf", f"model.path={tmp_path / 'model'}", "data=token_pairs",
         f"data.path={tmp_path / 'pairs.json'}", "tracking=disabled", f"runs_dir={tmp_path / 'runs'}",
         "analysis.receivers=[2.1.q,1.0.q]", "hardware=debug"]
    )  # fmt: skip
    assert walk(composed) == 0
    result = load(composed.directory)
    model = tiny("gpt2")
    definition = Definition(model, pairs, [[parse_receiver("2.1.q"), parse_receiver("1.0.q")]])
    expected = (definition([Sender(0, 3)]) - definition.baseline()).mean().item()
    assert result.arrays["effect"].values[0, 3] == pytest.approx(expected, abs=1e-5)
    assert torch.isfinite(torch.from_numpy(result.arrays["per_prompt"].values)).all()
