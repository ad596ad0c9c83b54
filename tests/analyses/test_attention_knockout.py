"""Attention knockout as an analysis: arrays against the definition, means and bands, parts, end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from analyses.fact_cases import PROMPTS, token_facts
from analyses.splitting import assert_split_equals_whole
from models.tiny_models import tiny

from repro import config
from repro.analyses import attention_knockout, flow_means
from repro.analyses.fact_inputs import ask
from repro.analyses.flow_specs import AttentionKnockout
from repro.analyses.specs import Analysis
from repro.data.fact_specs import FactsToy, Known1000, PromptsFile
from repro.data.facts import FactData
from repro.data.facts_records import Fact
from repro.errors import UserError
from repro.interventions.attention_knockout import probability, window
from repro.interventions.attention_knockout_definition import knockout_by_definition
from repro.interventions.lm_run import run as forward
from repro.models.known_shapes import find
from repro.pipeline import run as walk
from repro.results import NamedArray, Result, load

SETS = ["subject", "non_subject", "last", "first_subject", "last_subject", "relation", "none"]


def found(data: Any = None, model: Any = None, **settings: Any) -> Result:
    spec = AttentionKnockout.parse({"window": 2, "resamples": 50, **settings}, "analysis")
    return attention_knockout.run(
        model or tiny("gpt2", dtype=torch.float64), data or token_facts(), None, None, spec
    )


def test_every_cell_is_the_definition_prompt_by_prompt() -> None:
    model, data = tiny("gpt2", dtype=torch.float64), token_facts()
    result = found(data, model, sets=SETS, sweep=[1, 7], batch=2)
    arrays, facts = result.arrays, data.tokenise()
    logits = forward(model, facts.batch, logits="last").logits
    assert logits is not None
    answer = logits.argmax(-1)
    assert arrays["answer"].values.tolist() == answer.tolist()
    np.testing.assert_allclose(arrays["base"].values, probability(logits, answer), rtol=1e-9)
    sets = torch.stack([facts.positions(name) for name in SETS], dim=1)
    assert arrays["probability"].axes == {"prompt": 5, "set": SETS, "layer": [0, 1, 2]}
    for place, size in enumerate((2, 1, 7)):
        windows = [window(centre, size, 3) for centre in range(3)]
        expected = knockout_by_definition(model, facts.batch, sets, windows, answer)
        np.testing.assert_allclose(arrays["sweep_probability"].values[:, place], expected, rtol=1e-9)
    assert np.array_equal(arrays["probability"].values, arrays["sweep_probability"].values[:, 0])
    change = arrays["relative_change"]
    by_hand = 100 * (arrays["probability"].values / arrays["base"].values[:, None, None] - 1)
    np.testing.assert_allclose(change.values, by_hand, atol=1e-9)
    assert change.unit == "%" and (change.values[:, SETS.index("none")] == 0).all()
    assert arrays["subject_columns"].values[0].tolist() == [1, 2, 5]
    assert arrays["subject_first"].values.tolist() == [False, True, False, False, False]
    np.testing.assert_allclose(arrays["mean"].values, change.values.mean(0), rtol=1e-12)
    assert result.scalars["prompts"] == 5 and np.isnan(result.scalars["agreeing.share"])


def test_parts_give_the_whole(tmp_path: Path) -> None:
    spec = AttentionKnockout(window=2, sweep=[1], maps=[2], map_window=1, resamples=20, batch=1)
    model = tiny("llama", "sdpa", torch.float64)
    assert_split_equals_whole(attention_knockout, model, token_facts(), spec, 5, tmp_path, (2, 3))


def test_no_number_depends_on_batches() -> None:
    one, many = (found(batch=batch, maps=[0]) for batch in (1, 5))
    for name, array in one.arrays.items():
        np.testing.assert_allclose(many.arrays[name].values, array.values, rtol=1e-9, atol=1e-9, err_msg=name)


def test_a_map_cuts_every_position_alone() -> None:
    """Its row of the last position is the set `last`, that of a one-token subject the set `subject`."""
    result = found(maps=[1], map_window=2)
    table, prompt = result.arrays["map_1"], result.arrays["relative_change"].values[1]
    assert table.axes == {"position": ["8", "2", "33", "21"], "layer": [0, 1, 2]}
    np.testing.assert_allclose(table.values[3], prompt[2], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(table.values[0], prompt[0], rtol=1e-9, atol=1e-9)
    with pytest.raises(UserError, match="analysis.maps: got prompt 5. Valid: 0 to 4"):
        found(maps=[5])


def test_bands_are_percentiles_of_resampled_means_and_have_a_seed() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(3.0, 2.0, size=(200, 1, 2))
    change = NamedArray(values, {"prompt": 200, "set": ["subject"], "layer": [0, 1]}, "%")
    weights = flow_means.resampled(200, 2000, 7)
    np.testing.assert_allclose(weights.sum(1), 1)
    arrays = flow_means.with_bands("", change, weights, 0.95)
    half = (arrays["mean_high"].values - arrays["mean_low"].values) / 2
    np.testing.assert_allclose(half, 1.96 * values.std(0) / 200**0.5, rtol=0.08)
    drawn = np.random.default_rng([7, 200]).multinomial(200, np.full(200, 1 / 200), size=2000)
    means = np.array([np.repeat(values[:, 0, 0], counts).mean() for counts in drawn])
    np.testing.assert_allclose(arrays["mean_low"].values[0, 0], np.percentile(means, 2.5), rtol=1e-9)
    again = flow_means.resampled(200, 2000, 7)
    assert np.array_equal(again, weights) and not np.array_equal(flow_means.resampled(200, 2000, 8), weights)


def test_windows_are_by_themselves_a_fifth_of_the_layers() -> None:
    """As published for GPT-2 XL and GPT-J; a model of four layers is cut layer by layer."""
    spec = AttentionKnockout(sweep=[1, 9])
    assert [spec.sizes(depth)[0] for depth in (48, 28, 12, 4, 1)] == [9, 5, 3, 1, 1]
    assert spec.sizes(48) == [9, 1] and spec.sizes(28) == [5, 1, 9] and spec.sizes(4) == [1, 9]
    assert AttentionKnockout(window=7).sizes(4) == [7]
    assert [spec.map_size(depth) for depth in (48, 4)] == [10, 2]
    assert AttentionKnockout(map_window=1).map_size(48) == 1
    one, same = (found(window=window, sweep=[3]) for window in ("auto", 1))
    assert np.array_equal(one.arrays["sweep_mean"].values, same.arrays["sweep_mean"].values)
    assert one.arrays["sweep_mean"].labels("window") == [1, 3]


def test_places_are_split_and_a_missing_one_is_nan() -> None:
    result = found()
    mean, change = result.arrays["place_mean"], result.arrays["relative_change"].values
    np.testing.assert_allclose(mean.values[0], change[1], rtol=1e-12)
    np.testing.assert_allclose(mean.values[1], change[[0, 2, 3, 4]].mean(0), rtol=1e-12)
    assert result.arrays["place_prompts"].values.tolist() == [1, 4]
    only = found(token_facts(PROMPTS[:1]))
    assert np.isnan(only.arrays["place_mean"].values[0]).all() and "place.first.min.last" not in only.scalars


def test_scalars_of_curves_by_hand() -> None:
    curves = np.array([[0.0, -5.0, -60.0, -20.0, 1.0, 0.0], [-10.0, -40.0, -3.0, 0.0, 0.0, 0.0]])
    axes: dict[str, Any] = {"set": ["subject", "non_subject"], "layer": list(range(6))}
    scalars = flow_means.scalars(NamedArray(curves, axes, "%"))
    assert scalars["min.subject"] == -60 and scalars["argmin.subject"] == 2
    assert scalars["depth.subject"] == pytest.approx(1 / 3) and scalars["early.subject"] == 5
    assert scalars["early.non_subject"] == scalars["largest.non_subject"] == 40
    assert scalars["order.non_subject_first"] == 1 and scalars["order.layers"] == 1
    backwards = flow_means.scalars(NamedArray(curves[::-1], axes, "%"))
    assert backwards["order.non_subject_first"] == 0 and backwards["order.layers"] == -1
    # 1, 5, 9: the strength of the subject falls once from 60 to 50, that of the others only grows.
    swept = np.stack([curves, curves, curves])
    swept[1, 0, 2], swept[1, 1, 1], swept[2, 0, 2], swept[2, 1, 1] = -50, -45, -70, -45
    of_sizes: dict[str, Any] = {"window": [1, 5, 9], **axes}
    found = flow_means.sweep_scalars(NamedArray(swept, of_sizes, "%"))
    assert found["sweep.order_holds"] == 1 and found["window.9.min.subject"] == -70
    assert found["sweep.shrinks.subject"] == 10 and found["sweep.shrinks.non_subject"] == 0
    change = NamedArray(np.stack([0 * curves, curves]), {"prompt": 2, **axes}, "%")
    assert flow_means.first_layers(change) == {"first_layer.subject": 1, "first_layer.non_subject": 0}
    still = NamedArray(np.zeros((2, 2, 6)), {"prompt": 2, **axes}, "%")
    assert flow_means.first_layers(still)["first_layer.subject"] == 6


def test_known_prompts_are_those_the_model_answers_with_the_attribute(world: tuple[Any, Any]) -> None:
    """With attributes made to be the model's own answers in three of five prompts, these three are kept."""
    model, data = world
    facts = data.tokenise(model.tokenizer)
    logits = forward(model, facts.batch, logits="last").logits
    assert logits is not None
    said = [model.tokenizer.decode([i]) for i in logits.argmax(-1).tolist()]
    for i in (0, 2, 4):
        old = data.facts[i]
        made = Fact(i, old.where, old.prompt, old.subject, said[i])
        data = FactData(data.spec, (*data.facts[:i], made, *data.facts[i + 1 :]), "", "", world=data.world)
    kept = FactData(FactsToy(keep="known"), data.facts, "", "")
    asked = ask(model, kept, batch=2)
    assert {0, 2, 4} <= set(asked.facts.number.tolist()) and asked.asked == 5
    assert (asked.agrees == 1).all()
    result = found(kept, model)
    assert result.scalars["asked"] == 5 and result.scalars["prompts"] == len(asked)
    everything = found(FactData(FactsToy(), data.facts, "", ""), model)
    assert everything.scalars["mismatches"] == 5 - len(asked)
    with pytest.raises(UserError, match="data.keep: known prompts can be told only"):
        found(token_facts(keep="known"))


@pytest.fixture
def world() -> tuple[Any, Any]:
    from analyses.fact_worlds import untrained  # a model of the small world, with its tokenizer

    from repro.data.facts import load as load_facts

    spec = FactsToy(subjects=20, n=5)
    return untrained("gpt2", subjects=20), load_facts(spec)


def test_data_without_subjects_is_refused() -> None:
    with pytest.raises(UserError, match="Valid choices: data=known_1000, data=prompts_file"):
        found(object())
    with pytest.raises(UserError, match="sets: the same is there twice"):
        Analysis.choose({"kind": "attention_knockout", "sets": ["last", "last"]}, "analysis")
    with pytest.raises(UserError, match="non_subject"):
        Analysis.choose({"kind": "attention_knockout", "sets": ["verb"]}, "analysis")


def test_the_published_plan_is_estimated() -> None:
    """1,209 prompts times 144 cells on GPT-2 XL: one token from each window's first layer, and logits."""
    shape = find("gpt2-xl")
    assert shape is not None
    spec = AttentionKnockout()
    cost = spec.cost(shape, Known1000())
    cells = 1209 * 3 * 48
    tokens = next(work for work in cost.works if work.length == 1)
    left = [48 - max(0, centre - 4) for centre in range(48)]
    assert tokens.sequences == cells and tokens.share == pytest.approx(sum(left) / 48**2)
    logits = 2 * 50257 * 1600
    assert cost.flops == pytest.approx(cells * logits, rel=1e-3)
    whole = cells * shape.forward_flops(10, 1)
    assert 10 < whole / cost.total_flops(shape) < 25
    of = {"data": Known1000()}
    assert spec.items(lambda root: of) == 1209
    of = {"data": Known1000(keep="known")}
    assert spec.items(lambda root: of) is None
    assert "assumed" in spec.cost(shape, PromptsFile(path="mine")).lines[0]


def test_from_the_command_line_to_arrays(tmp_path: Path, project: Path) -> None:
    """The user's own checkpoint without a tokenizer, and token ids in a file."""
    tiny("opt").hf.save_pretrained(tmp_path / "model")
    lines = [json.dumps({"tokens": ids, "subject": list(span)}) for ids, span in PROMPTS]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    settings = {
        "model.path": tmp_path / "model", "data": "prompts_file", "data.path": tmp_path / "prompts.jsonl",
        "runs_dir": tmp_path / "runs", "analysis.window": 3,
    }  # fmt: skip
    given = [f"{key}={value}" for key, value in settings.items()]
    asked = ["paper/invented=first", "analysis=attention_knockout", "model=hf", *given]
    composed = config.compose(asked, root=project)
    assert walk(composed) == 0
    result = load(composed.directory)
    assert list(result.arrays["probability"].axes) == ["prompt", "set", "layer"]
    expected = found(model=tiny("opt"), window=3)
    for name in ("probability", "base", "answer"):
        np.testing.assert_allclose(
            result.arrays[name].values, expected.arrays[name].values, rtol=1e-5, err_msg=name
        )
