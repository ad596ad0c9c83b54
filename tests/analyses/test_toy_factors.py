"""The toy of three factors, against its definition and the published numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repro.analyses.specs import Analysis, ToyFactors
from repro.analyses.toy_factors import (
    descend,
    loss_given_others,
    misalignment,
    product_loss,
    run,
    starting_factors,
)
from repro.errors import UserError

# arXiv 2404.07129, Fig. 5a, as measured with the authors' code (six decimals; small losses three digits).
PUBLISHED_LOSS = {
    "none": {
        0: 0.755899,
        50: 0.226913,
        100: 0.221026,
        200: 0.219888,
        500: 0.218301,
        700: 0.177400,
        999: 7.75e-6,
    },
    "c": {0: 0.539370, 50: 0.217169, 100: 0.147916, 200: 0.003767, 300: 4.15e-5},
    "bc": {0: 0.469174, 50: 0.051487, 100: 0.005650, 200: 6.80e-5},
}
PUBLISHED_FIRST_BELOW = {"none": 761, "c": 139, "bc": 53}


@pytest.fixture(scope="module")
def result():
    return run(None, None, None, None, ToyFactors())


def definition(factors, truth):
    """0.5 * mean((a* x b* x c* - a x b x c)^2), entry by entry in float64."""
    outer = [np.einsum("i,j,k->ijk", *np.asarray(vectors, np.float64)) for vectors in (factors, truth)]
    return 0.5 * np.mean((outer[0] - outer[1]) ** 2)


def definition_descent(truth, start, held, iterations):
    """Losses of plain gradient descent on the full tensor, in float64, gradients written out by hand."""
    truth, factors = truth.astype(np.float64), start.astype(np.float64)
    target = np.einsum("i,j,k->ijk", *truth)
    losses = []
    for _ in range(iterations):
        factors = np.where(np.array(held)[:, None], truth, factors)
        a, b, c = factors
        error = np.einsum("i,j,k->ijk", a, b, c) - target
        losses.append(0.5 * np.mean(error**2))
        gradient = [
            np.einsum(f"ijk,{x},{y}->{z}", error, u, v)
            for x, y, z, u, v in [("j", "k", "i", b, c), ("i", "k", "j", a, c), ("i", "j", "k", a, b)]
        ]
        factors = factors - np.stack(gradient) / error.size
    return np.array(losses)


def close(measured, published):
    """Within 1e-4 of a published number, and within half a unit of the last digit it was printed with."""
    text = f"{published:.6f}" if published >= 1e-3 else f"{published:.2e}"
    last_digit = 1e-6 if published >= 1e-3 else 10.0 ** (int(text.split("e")[1]) - 2)
    return measured == pytest.approx(published, rel=1e-4, abs=0.5 * last_digit)


def test_starting_values_are_the_published_ones():
    truth, start = starting_factors(seed=1, dimension=20)
    np.testing.assert_allclose(truth[0, :3], [0.941476, 2.297732, -0.214236], atol=1e-6)
    np.testing.assert_allclose(start[0, :3], [0.903986, -0.665304, -0.207271], atol=1e-6)


@pytest.mark.parametrize("partitionable", [True, False])
def test_starting_values_do_not_depend_on_the_global_switch(partitionable):
    with jax.threefry_partitionable(partitionable):
        truth, _ = starting_factors(seed=1, dimension=20)
        assert jax.config.jax_threefry_partitionable == partitionable
    np.testing.assert_allclose(truth[0, 0], 0.941476, atol=1e-6)


@pytest.mark.parametrize("condition", PUBLISHED_LOSS)
def test_losses_are_the_published_ones(result, condition):
    losses = result.arrays["loss"].select(condition=condition).values
    for iteration, published in PUBLISHED_LOSS[condition].items():
        assert close(losses[iteration], published), (iteration, losses[iteration], published)
        assert result.scalars[f"{condition}.loss_at_{iteration}"] == pytest.approx(losses[iteration])
    assert result.scalars[f"{condition}.first_below_10_percent"] == PUBLISHED_FIRST_BELOW[condition]


def test_progress_measures_are_the_published_ones(result):
    angle = result.arrays["progress_one_minus_cos2"].select(condition="none").values
    for iteration, published in {0: 0.99998, 100: 0.9949, 500: 0.9251, 700: 0.4857}.items():
        assert angle[iteration] == pytest.approx(published, abs=5e-5 if published < 0.9999 else 5e-6)
    assert angle[999] == pytest.approx(1e-6, abs=5e-7)
    given = result.arrays["progress_clamped_loss"].select(condition="none").values
    for iteration, published in {0: 0.46547, 100: 0.29810, 500: 0.23823, 700: 0.10696}.items():
        assert given[iteration] == pytest.approx(published, rel=1e-4)
    assert given[999] == pytest.approx(8.9e-4, abs=5e-6)


@pytest.mark.parametrize("held", [(0, 0, 0), (0, 0, 1), (0, 1, 1)])
def test_descent_equals_the_definition_down_to_small_losses(held):
    truth, start = starting_factors(seed=1, dimension=20)
    losses = np.asarray(descend(truth, start, np.array([held], bool), 1.0, 1000)["loss"][0])
    exact = definition_descent(truth, start, held, 1000)
    visible = exact > 5e-6
    np.testing.assert_allclose(losses[visible], exact[visible], rtol=1e-4)
    assert exact[visible].min() < 1e-5  # the comparison reaches the smallest published loss


@pytest.mark.parametrize("distance", [1.0, 1e-2, 1e-3])
def test_loss_equals_the_definition_near_the_truth(distance):
    random = np.random.default_rng(0)
    truth, away = random.normal(size=(2, 3, 7)).astype(np.float32)
    factors = truth + np.float32(distance) * away
    assert product_loss(jnp.asarray(factors), jnp.asarray(truth)) == pytest.approx(
        definition(factors, truth), rel=1e-4
    )


def test_loss_does_not_see_scales_and_signs_that_cancel():
    truth, _ = starting_factors(seed=3, dimension=5)
    same_product = jnp.asarray(truth * np.array([[-2.0], [-1.0], [0.5]], np.float32))
    assert product_loss(same_product, jnp.asarray(truth)) < 1e-12
    assert loss_given_others(jnp.asarray(truth).at[0].multiply(-1), jnp.asarray(truth)) < 1e-12


def test_misalignment_of_known_angles():
    along = jnp.array([2.0, 0.0])
    assert misalignment(jnp.array([-3.0, 0.0]), along) == 0
    assert misalignment(jnp.array([0.0, 1.0]), along) == 1
    assert misalignment(jnp.array([1.0, 1.0]), along) == pytest.approx(0.5)


def test_everything_clamped_has_no_loss():
    clamped = run(None, None, None, None, ToyFactors(iterations=3, conditions={"all": ["a", "b", "c"]}))
    np.testing.assert_array_equal(clamped.arrays["loss"].values, 0)


def test_records_each_condition():
    rows = []

    class Record:
        def many(self, steps, columns, condition=""):
            rows.append((condition, len(steps), sorted(columns)))

    run(None, None, Record(), None, ToyFactors(iterations=4, conditions={"x": [], "y": ["a"]}))
    columns = ["loss", "progress_clamped_loss", "progress_one_minus_cos2"]
    assert rows == [("x", 4, columns), ("y", 4, columns)]


def test_divergence_and_unknown_factors_are_refused():
    with pytest.raises(UserError, match="learning_rate"):
        run(None, None, None, None, ToyFactors(learning_rate=1e4, iterations=50))
    with pytest.raises(UserError, match="conditions"):
        Analysis.choose({"kind": "toy_factors", "conditions": {"x": ["d"]}}, "analysis")
