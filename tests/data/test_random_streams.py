"""The published streams do not leak, and no outer setting breaks them. Known values: fact sheet C.0."""

import jax
import numpy as np
import pytest

from repro.data.random_streams import key_schedule, on_published_streams, published_streams, steps_keys

PUBLISHED = [[4146024105, 967050713], [2718843009, 1272950319]]
MODERN = [[1797259609, 2579123966], [928981903, 3453687069]]


def split():
    return jax.random.split(jax.random.PRNGKey(0), 2)


@pytest.fixture(params=[True, False], ids=["partitionable outside", "not partitionable outside"])
def outside(request):
    with jax.threefry_partitionable(request.param):
        yield MODERN if request.param else PUBLISHED


def test_known_values_inside_and_nothing_leaks(outside):
    assert split().tolist() == outside
    with published_streams():
        assert split().tolist() == PUBLISHED
        with jax.threefry_partitionable(True):
            assert split().tolist() == MODERN
            with published_streams():
                assert split().tolist() == PUBLISHED
            assert split().tolist() == MODERN
        assert split().tolist() == PUBLISHED
    assert split().tolist() == outside


def test_undone_after_an_exception(outside):
    with pytest.raises(RuntimeError), published_streams():
        raise RuntimeError
    assert split().tolist() == outside


@pytest.mark.parametrize("order", ["inside first", "outside first"])
def test_one_jitted_function_keeps_both_streams_apart(outside, order):
    jitted = jax.jit(split)
    for turn in ["inside", "outside"] * 2 if order == "inside first" else ["outside", "inside"] * 2:
        if turn == "outside":
            assert jitted().tolist() == outside
        else:
            with published_streams():
                assert jitted().tolist() == PUBLISHED


def test_a_decorated_function_traced_by_an_outer_jit_keeps_its_stream(outside):
    decorated = on_published_streams(split)
    outer = jax.jit(lambda: (split(), decorated(), split()))
    before, inner, after = outer()
    assert before.tolist() == after.tolist() == outside
    assert inner.tolist() == PUBLISHED


def test_keys_of_a_run_do_not_depend_on_the_setting(outside):
    assert key_schedule(0, 0).train_data.tolist() == PUBLISHED[0]
    assert key_schedule(5, 0).evaluate_model.tolist() == PUBLISHED[1]


def test_steps_keys_is_the_chain_of_splits(outside):
    start = key_schedule(0, 1).train_data
    end, keys = jax.jit(steps_keys, static_argnums=1)(start, 5)
    chain = start
    with published_streams():
        for key in keys:
            chain, expected = jax.random.split(chain)
            np.testing.assert_array_equal(key, expected)
    np.testing.assert_array_equal(chain, end)
    middle, _ = steps_keys(start, 2)
    np.testing.assert_array_equal(steps_keys(middle, 3)[1], keys[2:])
