"""Every manipulation against numbers of the published implementation."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repro.interventions.icl_manipulations import Inputs, build, untouched
from repro.interventions.specs import Manipulation
from repro.models.icl_init import init
from repro.models.specs import IclTransformer
from tests.models.small_models import from_weights, named

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "manipulations.json").read_text())
QUICK = {"xla_backend_optimization_level": 0}  # these programs run once
SPEC = IclTransformer(depth=2, heads=4, width=16)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "manipulations.npz") as stored:
        return dict(stored)


def forward_of(case: dict, golden: dict[str, np.ndarray]):
    like = init(SPEC, 16, 5, 0)
    frozen = from_weights(golden, "frozen/", like)
    own = build([Manipulation.choose(one, "m") for one in case["frozen_manipulations"]])
    wanted = [Manipulation.choose(one, "m") for one in case["manipulations"]]
    forward = build(wanted, lambda run, checkpoint: (frozen, own))
    return from_weights(golden, "w/", like), forward


def inputs_of(golden: dict[str, np.ndarray]) -> Inputs:
    return Inputs(jnp.asarray(golden["labels"]), jnp.asarray(golden["examples"]))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_logits_patterns_and_values(case: dict, golden: dict[str, np.ndarray]) -> None:
    """What is read is what the published record holds, but for layers that have no part in the result."""
    model, forward = forward_of(case, golden)
    kinds = {one["kind"] for one in case["manipulations"]}
    # There, perfect copying with a perfect input leaves all but the query's logits as in an untouched run.
    query_alone = {"perfect_copy", "perfect_previous_token_input"} <= kinds
    layers = [] if query_alone else [1] if kinds & {"graft_in", "graft_out"} else [0, 1]
    places = frozenset((site, layer) for site in ("pattern", "v") for layer in layers)

    logits, values = forward(model, inputs_of(golden), places, False)
    compared = slice(-1, None) if query_alone else slice(None)
    expected = golden[f"out/{case['name']}"]
    np.testing.assert_allclose(logits[:, 0::2][:, compared], expected[:, compared], rtol=1e-5, atol=1e-5)
    assert values.keys() == places
    for (site, layer), value in values.items():
        expected = golden[f"{site}/{case['name']}/{layer}"]
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5, err_msg=f"{site} {layer}")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_compiled_query_logits_and_gradients(case: dict, golden: dict[str, np.ndarray]) -> None:
    """No gradient is stopped where the published passes let it through, and none flows where they do not."""
    model, forward = forward_of(case, golden)
    weight = np.random.default_rng(9).standard_normal((3, 5)).astype(np.float32)

    def score(model):
        logits = forward(model, inputs_of(golden))[0][:, 0]
        return jnp.sum(jnp.where(logits > -1e8, logits * weight, 0)), logits

    gradient, logits = jax.jit(jax.grad(score, has_aux=True), compiler_options=QUICK)(model)
    np.testing.assert_allclose(logits, golden[f"out/{case['name']}"][:, -1], rtol=1e-5, atol=1e-5)
    gradient = named(gradient)
    largest = max(np.linalg.norm(value) for value in gradient.values())
    for name, value in gradient.items():
        along, norm = golden[f"grad/{case['name']}/{name}"]
        got = [
            np.sum(value.ravel().astype(np.float64) * np.cos(np.arange(value.size))),
            np.linalg.norm(value),
        ]
        np.testing.assert_allclose(got, [along, norm], rtol=1e-4, atol=1e-5 * largest, err_msg=name)
        assert (norm == 0) == (np.linalg.norm(value) == 0), name


def test_untouched_is_the_forward_pass_without_manipulations(golden: dict[str, np.ndarray]) -> None:
    model, forward = forward_of(CASES[0], golden)
    assert forward is untouched
