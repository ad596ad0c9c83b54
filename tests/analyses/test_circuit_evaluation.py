"""Faithfulness, completeness and minimality, on models whose circuit is known and by the definition."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from repro.analyses import lm_inputs as lm
from repro.analyses.circuit_specs import HeadClass
from repro.analyses.greedy_sets import greedy
from repro.analyses.lm_circuit_specs import CircuitEvaluation, Greedy
from repro.errors import UserError
from repro.interventions.lm_edits import At, Replace
from repro.interventions.lm_run import run
from tests.analyses import circuit_cases as cases
from tests.analyses.lm_cases import measure, padded_left, pairs
from tests.models.tiny_models import exact, tiny

NO_GREEDY = Greedy(runs=0)
CLASSES = {
    "late": HeadClass(heads=["2.1", "1.2"]),
    "early": HeadClass(heads=["0.3", "1.2"], at="S2"),
    "first": HeadClass(heads=["0.0"], at="IO"),
}
RANDOM = CircuitEvaluation(circuit=CLASSES, random_sets=4, greedy=Greedy(candidates=2, steps=2, runs=2))


def test_a_model_of_one_head_is_its_own_circuit():
    spec = CircuitEvaluation(circuit="found", random_sets=3, greedy=Greedy(runs=2, steps=2))
    found = measure(cases.model(), cases.pairs(8), spec).scalars
    whole = found["model.mean"]
    assert whole > 1 and found["circuit.mean"] == pytest.approx(whole, abs=1e-12)
    assert found["faithfulness.gap"] == pytest.approx(0, abs=1e-12)
    assert found["class.movers.model"] == pytest.approx(0, abs=1e-12)
    assert found["class.movers.circuit"] == pytest.approx(0, abs=1e-12)
    assert found["minimality.least"] == pytest.approx(1, abs=1e-12)
    assert found["minimality.passed"] == found["minimality.nodes"] == 1


def test_a_circuit_without_the_head_that_matters_is_neither_faithful_nor_minimal():
    spec = CircuitEvaluation(circuit={"other": HeadClass(heads=["0.0"])}, random_sets=0, greedy=NO_GREEDY)
    found = measure(cases.model(), cases.pairs(8), spec).scalars
    assert found["faithfulness.share"] == pytest.approx(1, abs=1e-12)
    assert found["circuit.mean"] == pytest.approx(0, abs=1e-12)
    assert found["minimality.passed"] == 0


def test_greedy_sets_find_what_the_circuit_lacks():
    """The circuit lacks the negative head, which the model keeps when the mover is knocked out."""
    spec = CircuitEvaluation(
        circuit={"movers": HeadClass(heads=["0.1"]), "idle": HeadClass(heads=["0.0"])},
        random_sets=0,
        greedy=Greedy(candidates=2, steps=2, runs=1, keep=1),
    )
    found = measure(cases.model(-1.0), cases.pairs(8), spec)
    gaps = {name: found.scalars[f"class.{name}.circuit"] - found.scalars[f"class.{name}.model"]
            for name in ("none", "movers")}  # fmt: skip
    assert found.scalars["greedy.gap.max"] == pytest.approx(max(map(abs, gaps.values())), abs=1e-12)


def by_definition(model, data, circuit, gone):
    """Mean ablation node by node over the corrupt prompts: outside the circuit, and of a class."""
    reads = [At("z", layer) for layer in range(model.depth)]
    there = run(model, data.corrupt, reads=reads, logits=None)
    edits = []
    for row, group in enumerate(data.groups.tolist()):
        same = data.groups == group
        for layer, head in itertools.product(range(model.depth), range(model.heads)):
            for column in range(int(data.clean.mask[row].sum())):
                classes = {
                    name
                    for name, one in CLASSES.items()
                    if f"{layer}.{head}" in one.heads and int(data.positions[one.at][row]) == column
                }
                if (circuit and not classes) or gone in classes:
                    at = At("z", layer, heads=[head], positions=[column], rows=[row])
                    edits.append(Replace(at, there["z", layer][same].mean(0)[column, head]))
    return lm.run_difference(model, data.clean, lm.answer_columns(data), data.positions["END"], edits)


@pytest.mark.parametrize("kind", ["gpt2", "gptj", "llama"])
def test_equals_replacing_node_by_node(kind, monkeypatch):
    model, data = exact(kind, monkeypatch), pairs()
    found = measure(model, data, RANDOM.model_copy(update={"random_sets": 0, "greedy": NO_GREEDY}))
    for name in ("none", "late", "early"):
        for side, circuit in (("circuit", True), ("model", False)):
            expected = by_definition(model, data, circuit, name)
            values = found.arrays[f"class.{side}_per_prompt"].select(set=name).values
            np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-9)


def test_all_heads_everywhere_are_the_model_whatever_is_knocked_out():
    model, data = tiny("gpt2", dtype=torch.float64), pairs()
    heads = [f"{layer}.{head}" for layer in range(3) for head in range(4)]
    circuit = {"half": HeadClass(heads=heads[:6], at=None), "rest": HeadClass(heads=heads[6:], at=None)}
    spec = CircuitEvaluation(circuit=circuit, random_sets=5, greedy=Greedy(runs=2, steps=2))
    found = measure(model, data, spec)
    for gap in ("faithfulness.gap", "random.gap.max", "greedy.gap.max", "class.gap.max"):
        assert found.scalars[gap] == pytest.approx(0, abs=1e-9)


def test_neither_batches_nor_padding_nor_the_order_of_classes_matter():
    model, data = tiny("gpt2", dtype=torch.float64), pairs()
    expected = measure(model, data, RANDOM)
    for data_, spec in ((data, RANDOM.model_copy(update={"batch": 2})), (padded_left(data), RANDOM)):
        found = measure(model, data_, spec)
        for name, array in expected.arrays.items():
            np.testing.assert_allclose(found.arrays[name].values, array.values, rtol=1e-8, atol=1e-9)
    turned = RANDOM.model_copy(update={"circuit": dict(reversed(CLASSES.items()))})
    found = measure(model, data, turned)
    for name in CLASSES:
        assert found.scalars[f"class.{name}.circuit"] == pytest.approx(
            expected.scalars[f"class.{name}.circuit"]
        )


def test_random_numbers_come_from_the_seed():
    model, data = tiny("gpt2", dtype=torch.float64), pairs()
    one, again, other = (
        measure(model, data, RANDOM.model_copy(update={"seed": seed, "random_sets": 20}))
        for seed in (1, 1, 2)
    )
    members = [found.arrays["random.members"].values for found in (one, again, other)]
    assert (members[0] == members[1]).all() and (members[0] != members[2]).any()
    assert 0.3 < members[0].mean() < 0.7
    np.testing.assert_array_equal(one.arrays["greedy.path"].values, again.arrays["greedy.path"].values)


def test_minimality_takes_the_rest_of_the_class_or_what_is_given():
    model, data = tiny("gpt2", dtype=torch.float64), pairs()
    spec = RANDOM.model_copy(update={"random_sets": 0, "greedy": NO_GREEDY})
    found = measure(model, data, spec)
    removed, kept = (found.arrays[f"minimality.{name}"] for name in ("removed", "kept"))
    late = found.scalars["class.late.circuit"]
    for node in ("2.1@END", "1.2@END"):
        assert removed.select(node=node).values == pytest.approx(late)
    assert kept.select(node="0.0@IO").values == pytest.approx(found.scalars["circuit.mean"])
    score = abs(removed.values - kept.values)
    np.testing.assert_allclose(found.arrays["minimality.score"].values, score)
    given = measure(model, data, spec.model_copy(update={"minimality_sets": {"0.0": ["late"]}}))
    assert given.arrays["minimality.kept"].select(node="0.0@IO").values == pytest.approx(late)
    wrong = spec.model_copy(update={"minimality_sets": {"0.0": ["nobody"]}})
    with pytest.raises(UserError, match=r"analysis.minimality_sets.0.0: 'nobody' is not in the circuit"):
        measure(model, data, wrong)


def test_classes_can_be_knocked_out_together():
    model, data = tiny("gpt2", dtype=torch.float64), pairs()
    spec = RANDOM.model_copy(
        update={"random_sets": 0, "greedy": NO_GREEDY, "sets": {"both": ["late", "early"], "one": ["2.1"]}}
    )
    found = measure(model, data, spec)
    assert found.arrays["class.circuit"].axes["set"] == ["none", *CLASSES, "both", "one"]
    alone = measure(model, data, spec.model_copy(update={"circuit": {"first": CLASSES["first"]}, "sets": {}}))
    assert found.scalars["class.both.circuit"] == pytest.approx(alone.scalars["circuit.mean"])
    with pytest.raises(UserError, match="'late' is a class already"):
        measure(model, data, spec.model_copy(update={"sets": {"late": ["early"]}}))


def test_sets_of_heads_of_another_model_are_left_out_of_a_circuit_found_here():
    spec = CircuitEvaluation(
        circuit="found", random_sets=0, greedy=NO_GREEDY, minimality_sets={"0.1": ["nobody"]},
        sets={"movers_and_others": ["movers", "others"], "others_alone": ["others"]},
    )  # fmt: skip
    found = measure(cases.model(), cases.pairs(8), spec)
    assert found.arrays["class.circuit"].axes["set"] == ["none", "movers", "movers_and_others"]
    assert found.scalars["minimality.least"] == pytest.approx(1)


def test_a_naive_circuit_is_evaluated_beside_it_and_errors_are_of_paired_differences():
    model, data = tiny("gpt2", dtype=torch.float64), pairs()
    found = measure(model, data, RANDOM.model_copy(update={"naive": {"late": CLASSES["late"]}}))
    assert found.scalars["naive.model.mean"] == found.scalars["model.mean"]
    alone = measure(model, data, RANDOM.model_copy(update={"circuit": {"late": CLASSES["late"]}}))
    assert found.scalars["naive.faithfulness.gap"] == pytest.approx(alone.scalars["faithfulness.gap"])
    inside, outside = (found.arrays[f"class.{side}_per_prompt"].values for side in ("circuit", "model"))
    expected = (inside - outside).std(axis=1, ddof=1) / 5**0.5
    np.testing.assert_allclose(found.arrays["class.gap_se"].values, expected)


VALUES = np.array([3.0, -2.0, 5.0, 1.0])


def additive(sets):
    return np.array([sum(VALUES[i] for i in one) for one in sets])


def test_greedy_with_all_candidates_takes_what_helps_in_the_order_of_its_worth():
    (run_,) = greedy(4, additive, Greedy(candidates=9, steps=6, runs=1), seed=0)
    assert run_.members == [2, 0, 3]
    assert run_.path == [5, 8, 9, 9, 9, 9]


def test_greedy_runs_do_not_depend_on_how_many_there_are():
    few = greedy(4, additive, Greedy(candidates=1, steps=4, runs=2), seed=3)
    many = greedy(4, additive, Greedy(candidates=1, steps=4, runs=6), seed=3)
    assert few == many[:2] and len({tuple(one.members) for one in many}) > 1
    assert all((np.diff(one.path) >= 0).all() for one in many)
    assert all(1 not in one.members for one in many)  # it would lower the objective
