"""Why does a circuit of several parts learn in a phase change? A toy of three factors.

Gradient descent fits vectors a, b, c to a target a* x b* x c* (outer product). The gradient of each factor is
scaled by how right the other two are, so learning stalls until all three are partly right and then drops;
clamping factors to the truth shortens or removes the plateau.
Source: arXiv 2404.07129, section 5 with Fig. 5a, and appendix Fig. 9 for the progress measures.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from repro.analyses.specs import ToyFactors
from repro.data.random_streams import published_streams
from repro.errors import UserError
from repro.models import jax_device
from repro.results import NamedArray, Result

FACTORS = ("a", "b", "c")


def starting_factors(seed: int, dimension: int) -> tuple[Float[np.ndarray, "3 d"], Float[np.ndarray, "3 d"]]:
    """The true and the initial a, b, c, all N(0, 1), from the random streams of the published runs."""
    with published_streams():
        keys = jax.random.split(jax.random.PRNGKey(seed), 6)
        vectors = np.stack([np.asarray(jax.random.normal(key, (dimension,), jnp.float32)) for key in keys])
    return vectors[:3], vectors[3:]


def product_loss(factors: Float[Array, "3 d"], truth: Float[Array, "3 d"]) -> Float[Array, ""]:
    """0.5 * mean over all d^3 entries of (a* x b* x c* - a x b x c)^2, from inner products alone.

    Each factor is split into its part along the truth, s f*, and the rest, r. The products of parts are
    orthogonal to each other, so the squared error is a sum of eight terms without a negative one:
    (1 - s_a s_b s_c)^2 |a*|^2 |b*|^2 |c*|^2 and every product with at least one rest. Expanding the
    square into |T|^2 - 2 <T, P> + |P|^2 instead would lose all but two digits in float32 once the loss
    is near 1e-5.
    """
    true_square = jnp.sum(truth**2, axis=1)
    share = jnp.sum(factors * truth, axis=1) / true_square
    a, b, c = share**2 * true_square
    rest_a, rest_b, rest_c = jnp.sum((factors - share[:, None] * truth) ** 2, axis=1)
    off_target = rest_a * (b + rest_b) * (c + rest_c) + a * rest_b * (c + rest_c) + a * b * rest_c
    on_target = (1 - jnp.prod(share)) ** 2 * jnp.prod(true_square)
    return 0.5 * (on_target + off_target) / factors.shape[1] ** 3


def misalignment(factor: Float[Array, " d"], truth: Float[Array, " d"]) -> Float[Array, ""]:
    """1 - cos^2 of the angle between a factor and its true value: 0 when parallel, either way round."""
    rest = factor - jnp.sum(factor * truth) / jnp.sum(truth**2) * truth
    return jnp.sum(rest**2) / jnp.sum(factor**2)


def loss_given_others(factors: Float[Array, "3 d"], truth: Float[Array, "3 d"]) -> Float[Array, ""]:
    """The loss were b and c true, the better of a and -a: what a alone still lacks.

    Both signs, because b and c can make good for the sign of a.
    """
    either_sign = [product_loss(truth.at[0].set(sign * factors[0]), truth) for sign in (1, -1)]
    return jnp.minimum(*either_sign)


@partial(jax.jit, static_argnames=("iterations",))
def descend(
    truth: Float[Array, "3 d"],
    start: Float[Array, "3 d"],
    clamped: Bool[Array, "condition 3"],
    learning_rate: float,
    iterations: int,
) -> dict[str, Float[Array, "condition iteration"]]:
    """Gradient descent from `start` in each condition; what is measured is measured before each update."""

    def one_condition(mask: Bool[Array, " 3"]) -> dict[str, Array]:
        def clamp(factors: Array) -> Array:
            return jnp.where(mask[:, None], truth, factors)

        def step(factors: Array, _: None) -> tuple[Array, dict[str, Array]]:
            loss, gradient = jax.value_and_grad(product_loss)(factors, truth)
            measured = {
                "loss": loss,
                "progress_one_minus_cos2": misalignment(factors[0], truth[0]),
                "progress_clamped_loss": loss_given_others(factors, truth),
            }
            return clamp(factors - learning_rate * gradient), measured

        return jax.lax.scan(step, clamp(start), None, length=iterations)[1]

    return jax.vmap(one_condition)(clamped)


def run(
    subject: Any, data: Any, record: Callable[..., Any] | None, directory: Path | None, spec: ToyFactors
) -> Result:
    """Train every condition and measure loss and the two progress measures of factor a at each iteration.

    subject, data and directory are not used: the toy is its own model and data.
    Arrays over [condition, iteration]: `loss`, `progress_one_minus_cos2`, `progress_clamped_loss`; and
    `true_factors`, `initial_factors` over [factor, dimension]. Scalars of each condition: the first
    iteration with a loss below a tenth of its start (infinite if never), and loss and progress at
    `report_at`.
    """
    jax_device.check()
    truth, start = starting_factors(spec.seed, spec.dimension)
    clamped = np.array([[factor in held for factor in FACTORS] for held in spec.conditions.values()])
    curves = {
        name: np.asarray(values)
        for name, values in descend(truth, start, clamped, spec.learning_rate, spec.iterations).items()
    }
    names = list(spec.conditions)
    if not np.isfinite(curves["loss"]).all():
        raise UserError(
            f"the toy model diverged with learning_rate {spec.learning_rate} and dimension {spec.dimension}. "
            "Take a smaller analysis.learning_rate."
        )
    if record is not None:
        for row, name in enumerate(names):
            columns = {key: value[row] for key, value in curves.items()}
            record.many(np.arange(spec.iterations), columns, condition=name)
    axes = {"condition": names, "iteration": spec.iterations}
    arrays = {name: NamedArray(values, axes) for name, values in curves.items()}
    start_axes = {"factor": list(FACTORS), "dimension": spec.dimension}
    arrays |= {
        "true_factors": NamedArray(truth, start_axes),
        "initial_factors": NamedArray(start, start_axes),
    }
    arrays["iteration"] = NamedArray(np.arange(spec.iterations), {"iteration": spec.iterations}, "iterations")
    return Result(_scalars(curves, names, spec), arrays)


def _scalars(curves: dict[str, np.ndarray], names: list[str], spec: ToyFactors) -> dict[str, float]:
    scalars = {}
    for row, name in enumerate(names):
        below = np.flatnonzero(curves["loss"][row] < 0.1 * curves["loss"][row, 0])
        scalars[f"{name}.first_below_10_percent"] = float(below[0]) if len(below) else float("inf")
        for key, values in curves.items():
            for iteration in spec.report_at:
                if 0 <= iteration < spec.iterations:
                    scalars[f"{name}.{key}_at_{iteration}"] = float(values[row, iteration])
    return scalars
