"""The search for a circuit, on models whose circuit is known and on random ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from repro.analyses.circuit_search import resolve, search
from repro.analyses.circuit_specs import HeadClass, Search, Shape, Step
from repro.analyses.circuits import Circuit, Node
from repro.analyses.lm_circuit_specs import FindCircuit
from repro.errors import UserError
from repro.interventions.path_patching_definition import Definition
from repro.interventions.path_patching_nodes import Sender
from tests.analyses import circuit_cases as cases
from tests.analyses.lm_cases import measure, pairs
from tests.models.tiny_models import exact, tiny

FIND = FindCircuit(attention_keys=["S2"])
LOOSE = Search(
    steps=[
        Step(name="movers"),
        Step(name="inhibition", into="movers.q", at_most=1),
        Step(name="repeats", into="inhibition.v", at="S2"),
    ],
    threshold=0.0,
    at_most=2,
)


def test_exactly_the_head_that_copies_is_found():
    found = measure(cases.model(), cases.pairs(8), FIND)
    assert found.notes["circuit"].endswith("movers: 0.1@END")
    assert found.scalars["heads"] == found.scalars["classes"] == found.scalars["verified.share"] == 1
    assert found.scalars["movers.percent"] == pytest.approx(-100, abs=1e-9)
    assert found.arrays["edge.percent"].select(receiver="logits").values == pytest.approx(-100)
    effects = found.arrays["step.change"].select(step="movers").values.copy()
    assert effects[0, 1] == pytest.approx(-found.scalars["logit_difference.mean"])
    effects[0, 1] = 0
    assert not effects.any()
    assert found.arrays["node.attention"].values == pytest.approx(1.0)
    assert found.arrays["class.per_prompt"].values == pytest.approx(0.0, abs=1e-12)


def test_a_head_that_writes_against_the_answer_is_of_the_negative_class():
    found = measure(cases.model(against=-0.25), cases.pairs(8), FIND)
    assert found.notes["circuit"].endswith("movers: 0.1@END; negative_movers: 1.0@END")
    assert found.arrays["class.predicted"].values.tolist() == [-1, 1]
    assert found.arrays["class.verified"].values.tolist() == [1, 1]
    change = found.arrays["class.knockout"].values
    assert change[0] < 0 < change[1]
    np.testing.assert_allclose(change, found.arrays["node.knockout"].values)
    assert found.arrays["node.verified"].values.tolist() == [1, 1] and found.scalars["verified.heads"] == 2
    assert found.notes["verified"].endswith("0.1@END (-133%), 1.0@END (+27%)")


def test_a_class_whose_knockout_does_too_little_is_not_verified():
    spec = FindCircuit(search=Search(verified_share=0.5), attention_keys=[])
    found = measure(cases.model(against=-0.25), cases.pairs(8), spec)
    assert found.arrays["class.verified"].values.tolist() == [1, 0]
    assert found.scalars["verified.share"] == 0.5


def test_nothing_is_found_in_a_model_without_such_heads():
    model = cases.model()
    with torch.no_grad():
        model.hf.transformer.h[0].attn.c_proj.weight.zero_()
    with pytest.raises(UserError, match="no head changes the logit difference"):
        measure(model, cases.pairs(), FIND)


@pytest.mark.parametrize("kind", ["gpt2", "gptj", "llama"])
def test_steps_are_path_patching_into_the_class_before(kind, monkeypatch):
    model, data = exact(kind, monkeypatch), pairs()
    found = search(model, data, data, FindCircuit(search=LOOSE))
    for step, before, letter, at in (
        ("inhibition", "movers", "q", "END"),
        ("repeats", "inhibition", "v", "S2"),
    ):
        if step not in found.steps:  # its receivers may have no head below
            continue
        receivers = found.circuit.receivers(model, before, letter, at)
        slow = Definition(model, data, [receivers], positions=at)
        for head in ((0, 1), (1, 2)):
            expected = slow([Sender(*head)]) - slow.baseline()
            torch.testing.assert_close(
                found.steps[step].change[head], expected.double(), rtol=1e-8, atol=1e-9
            )
        assert all(node.at == at for node in found.circuit.classes.get(step, ()))


def test_classes_are_the_strongest_heads_and_share_no_node():
    model, data = tiny("gpt2", dtype=torch.float64), pairs()
    found = search(model, data, data, FindCircuit(search=LOOSE))
    nodes = [node for members in found.circuit.classes.values() for node in members]
    assert len(nodes) == len(set(nodes))
    share = found.steps["movers"].share
    expected = (-share).flatten().topk(2).indices.tolist()
    assert [node.layer * 4 + node.head for node in found.circuit["movers"]] == expected


def test_given_classes_are_measured_as_receivers():
    model, data = tiny("gpt2", dtype=torch.float64), pairs()
    classes = {"movers": HeadClass(heads=["2.1", "1.0"]), "inhibition": HeadClass(heads=["0.3"])}
    found = measure(model, data, FindCircuit(circuit=classes, search=LOOSE))
    assert found.arrays["edge.percent"].axes["receiver"] == ["movers", "inhibition", "logits"]
    edges = found.arrays["edge.percent"].values
    assert np.isfinite(edges).tolist() == [[False, False, True], [False, False, True], [True, False, False]]
    slow = Definition(model, data, [Circuit.of(classes, "", "").receivers(model, "movers", "q")])
    expected = (slow([Sender(0, 3)]) - slow.baseline()).mean() / slow.baseline().mean().abs()
    assert edges[2, 0] == pytest.approx(100 * float(expected), rel=1e-8)
    assert 0 <= found.scalars["agreement.movers"] <= 1


def test_a_step_after_a_knockout_starts_from_the_model_without_the_class():
    after = [Step(name="movers"), Step(name="backup", after=["movers"], sign=1)]
    found = search(
        cases.model(-0.25), cases.pairs(8), cases.pairs(8), FindCircuit(search=Search(steps=after))
    )
    without = measure(cases.model(-0.25), cases.pairs(8), FIND).arrays["class.per_prompt"]
    np.testing.assert_allclose(found.steps["backup"].base, without.select(**{"class": "movers"}).values)
    assert found.steps["backup"].change[0].abs().max() < 1e-12  # a head that is knocked out sends nothing
    # Without the first head the second, which writes against the answer, is all there is.
    assert found.steps["backup"].share[1, 0] == pytest.approx(1.0)
    assert found.circuit["backup"] == (Node(1, 0),)


def test_the_batch_size_changes_nothing():
    model, data = tiny("llama", dtype=torch.float64), pairs()
    one, other = (measure(model, data, FindCircuit(search=LOOSE, batch=size)) for size in (2, 64))
    assert one.notes == other.notes
    for name, array in one.arrays.items():
        if array.values.dtype.kind == "f":
            np.testing.assert_allclose(array.values, other.arrays[name].values, rtol=1e-7, atol=1e-9)


CLASSES = {"writers": HeadClass(heads=["0.1"])}


def test_published_circuits_are_taken_for_models_of_their_shape_only():
    model, data = cases.model(), cases.pairs(8)
    shape = {"family": "gpt2", "depth": 2, "heads": 2}
    spec = FindCircuit(circuit="auto", published=CLASSES, circuit_of=Shape(**shape))
    assert resolve(model, data, data, spec).source == "published"
    other = spec.model_copy(update={"circuit_of": Shape(**{**shape, "depth": 12})})
    assert resolve(model, data, data, other).source == "found"
    assert resolve(model, data, data, spec.model_copy(update={"circuit": CLASSES})).source == "given"


def test_classes_stand_for_their_heads():
    circuit = Circuit.of(
        {"a": HeadClass(heads=["9.9", "9.6"]), "b": HeadClass(heads=["9.9"], at="S2")}, "given", ""
    )
    assert circuit.heads(["b", "3.1", "a"]) == ["9.9", "3.1", "9.6"]
    assert circuit.choose(["9.9"], "x") == (Node(9, 9, "END"), Node(9, 9, "S2"))
    assert circuit.choose(["9.9@S2", "b"], "x") == (Node(9, 9, "S2"),)
    with pytest.raises(UserError, match="x: 'c' is not in the circuit. Classes: a, b"):
        circuit.choose(["c"], "x")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"a": HeadClass(heads=["7.0"])}, "circuit.a: head 7.0 does not exist"),
        ({"a": HeadClass(heads=["0.0"], at="S9")}, "circuit.a: got position 'S9'. This data has: END"),
    ],
)
def test_circuits_that_do_not_fit_are_refused(classes, message):
    with pytest.raises(UserError, match=message):
        measure(cases.model(), cases.pairs(), FindCircuit(circuit=classes))


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([{"name": "a", "into": "b.q"}], "'b' is no class of an earlier step"),
        ([{"name": "a"}, {"name": "a"}], "the name is taken"),
        ([{"name": "a"}, {"name": "b", "into": "a"}], "Valid: logits, or CLASS.q"),
        ([{"name": "a", "at": "S2"}], "at END only"),
    ],
)
def test_steps_that_do_not_follow_are_refused(steps, message):
    with pytest.raises(UserError, match=message):
        FindCircuit.parse({"kind": "find_circuit", "search": {"steps": steps}}, "analysis")
