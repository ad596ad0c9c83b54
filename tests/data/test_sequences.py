"""Sequences equal those of the published implementation, number by number, and obey their options."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repro.data.class_draws import BURSTY, DISTRACTOR, OTHER, QUERY, shuffle
from repro.data.features import computed
from repro.data.random_streams import key_schedule, published_streams, steps_keys
from repro.data.sequences import evaluator_batches, gather, train_sampler
from repro.data.specs import Sequences
from repro.errors import UserError

GOLDEN = json.loads((Path(__file__).parent / "golden" / "published_sequences.json").read_text())
# Compiles faster; test_many_steps... compiles as training does.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
FEATURES = computed(np.arange(1623 * 5, dtype=np.float32).reshape(1623, 5, 1), "one number each", "test")


def spec_of(case):
    evaluate = {}
    for item in case["evaluate"]:
        options = {key: value for key, value in item["spec"].items() if key != "name"}
        evaluate[item["spec"]["name"]] = {"relabel": None, **options}
    return Sequences.parse({**case["spec"], "evaluate": evaluate}, "sequences")


def assert_equal(batch, expected):
    np.testing.assert_array_equal(batch.labels, expected["labels"])
    if "examples" in expected:
        examples = gather(jnp.asarray(FEATURES.values), batch)[..., 0]
        np.testing.assert_allclose(examples, expected["examples"], rtol=2e-7, atol=0)
        return
    assert batch.noise is None
    np.testing.assert_array_equal(batch.classes, expected["classes"])
    np.testing.assert_array_equal(batch.exemplars, expected["exemplars"])


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_training_batches_are_the_published_ones(case):
    keys = key_schedule(case["train_seed"], case["eval_seed"])
    next_key, batch_keys = steps_keys(keys.train_data, len(case["steps"]))
    assert next_key.tolist() == case["next_key"]
    batches = quick_jit(jax.vmap(train_sampler(spec_of(case), FEATURES, case["batch"])))(batch_keys)
    for step, expected in enumerate(case["steps"]):
        assert_equal(jax.tree.map(lambda leaf: leaf[step], batches), expected)  # noqa: B023


@pytest.mark.parametrize("case", [case for case in GOLDEN if case["evaluate"]], ids=lambda case: case["name"])
def test_evaluators_are_the_published_ones(case):
    keys = key_schedule(case["train_seed"], case["eval_seed"])
    batches = evaluator_batches(spec_of(case), FEATURES, keys.evaluate_data)
    assert list(batches) == [item["spec"]["name"] for item in case["evaluate"]]
    for item in case["evaluate"]:
        assert_equal(batches[item["spec"]["name"]], item)


@pytest.mark.parametrize("case", [GOLDEN[0], GOLDEN[7]], ids=lambda case: case["name"])
def test_many_steps_at_once_equal_one_after_the_other(case):
    sample = train_sampler(spec_of(case), FEATURES, case["batch"])
    chain = key_schedule(case["train_seed"], 1).train_data
    end, keys = steps_keys(chain, 20)
    together, alone = jax.jit(jax.vmap(sample))(keys), jax.jit(sample)
    for step in range(20):
        with published_streams():
            chain, key = jax.random.split(chain)
        for one, many in zip(alone(key), together, strict=True):
            if one is not None:
                np.testing.assert_array_equal(one, many[step])
    np.testing.assert_array_equal(chain, end)
    for step, expected in enumerate(case["steps"]):
        assert_equal(jax.tree.map(lambda leaf: leaf[step], together), expected)  # noqa: B023


def draw(count=300, seed=3, **options):
    spec = Sequences.parse({"labels": 0, "class_split": [12, "rest", 0], **options}, "sequences")
    return quick_jit(train_sampler(spec, FEATURES, count))(key_schedule(seed, 1).train_data)


@pytest.mark.parametrize("distractor", [True, False])
@pytest.mark.parametrize("rest", ["no_support", "unique_rest", "anything"])
@pytest.mark.parametrize("burstiness", [0, 1, 3])
def test_classes_obey_their_options(burstiness, rest, distractor):
    sampler = {"burstiness": burstiness, "distractor": distractor, rest: True}
    sampler.pop("anything", None)
    batch = draw(context=7, train=[sampler])
    classes, types = np.asarray(batch.classes), np.asarray(batch.types)
    context, kinds, query = classes[:, :-1], types[:, :-1], classes[:, -1:]
    copies = burstiness if distractor else 0
    assert (types[:, -1] == QUERY).all() and classes.min() >= 0 and classes.max() < 12
    assert ((kinds == BURSTY).sum(1) == burstiness).all() and ((kinds == DISTRACTOR).sum(1) == copies).all()
    assert (context == query)[kinds == BURSTY].all() and not (context == query)[kinds == DISTRACTOR].any()
    for row, kind in zip(context, kinds, strict=True):
        assert len(set(row[kind == DISTRACTOR])) <= 1
        others = row[kind == OTHER].tolist()
        if rest == "unique_rest":
            assert len(set(others)) == len(others)
        if rest != "anything":
            assert not set(others) & {*row[kind != OTHER].tolist()}
    if rest == "anything":
        assert (context == query)[kinds == OTHER].any()
    elif burstiness == 0:
        assert not (context == query).any()


def test_zipf_draws_follow_the_distribution():
    batch = draw(count=20_000, zipf_alpha=1.0)
    frequencies = np.bincount(np.asarray(batch.classes)[:, -1], minlength=12) / 20_000
    weights = 1 / np.arange(1, 13)
    np.testing.assert_allclose(frequencies, weights / weights.sum(), atol=0.012)


def test_mixture_follows_the_weights():
    batch = draw(count=20_000, train=[{"weight": 3, "burstiness": 0}, {"weight": 1, "burstiness": 1}])
    share = (np.asarray(batch.types) == BURSTY).any(axis=1).mean()
    assert abs(share - 0.25) < 0.01


@pytest.mark.parametrize(
    "shape, axis", [((2, 40), 0), ((7, 30), 0), ((40, 2), 1), ((2, 2000), 0), ((1, 5), 0)]
)
def test_shuffle_equals_the_library_permutation(shape, axis):
    values = jnp.arange(shape[0] * shape[1]).reshape(shape)
    key = jax.random.PRNGKey(8)
    with published_streams():
        expected = jax.random.permutation(key, values, axis, independent=True)
        first, second = shuffle(key, [values, -values], axis)
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(second, -expected)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"class_split": [50, 1473, 101]}, "adds up to 1624|needs 1624"),
        ({"class_split": [50, 100, 100]}, "adds up to 250, expected 1623"),
        ({"class_split": [1, "rest", 0]}, "needs 2 different classes"),
        (
            {"class_split": [4, "rest", 0], "context": 6, "train": [{"unique_rest": True}]},
            "needs 6 different classes",
        ),
    ],
)
def test_splits_that_do_not_fit_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        draw(**options)


def test_an_evaluator_without_exemplars_is_refused():
    options = {"exemplar_split": [5, "rest", 0], "evaluate": {"held_out": {"exemplars": "val"}}}
    with pytest.raises(UserError, match="sequences.evaluate.held_out.exemplars"):
        evaluator_batches(Sequences.parse(options, "sequences"), FEATURES, key_schedule(0, 1).evaluate_data)


def test_noise_has_its_scale_and_moves_nothing_else():
    values = jnp.zeros((1623, 5, 64))
    noisy, clean = draw(noise=2.0), draw()
    np.testing.assert_array_equal(noisy.classes, clean.classes)
    assert abs(float(gather(values, noisy).std()) - 2.0) < 0.02
    assert float(gather(values, clean).std()) == 0
