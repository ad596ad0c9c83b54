"""Truncated normal numbers to the last bit as in the published runs, whatever the version of JAX.

The published weights were drawn with jax 0.4 on a CPU: erf_inv of a uniform number, where erf_inv(u) is a
polynomial in -log(1 - u^2). Newer compilers round one product in that logarithm on its own instead of within
the sum that follows, which changes the last bit of about one weight in 4000. Here every rounding is written
out, in NumPy: a fused multiply-add is computed in double precision and rounded once.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from repro.data.random_streams import Key

# log(1 + x) = x - x^2 / 2 + x^3 P(x) / Q(x) for small x (Cephes), highest power first.
_LOG_P = (4.5270000862445199635215e-5, 0.49854102823193375972212, 6.5787325942061044846969,
          29.911919328553073277375, 60.949667980987787057556, 57.112963590585538103336,
          20.039553499201281259648)  # fmt: skip
_LOG_Q = (1.0, 15.062909083469192043167, 83.047565967967209469434, 221.76239823732856465394,
          309.09872225312059774938, 216.42788614495947685003, 60.118660497603843919306)  # fmt: skip
_LOG_LIMIT = np.float32(math.sqrt(2) - 1)
# erf_inv(u) = u times a polynomial in w - 2.5 for w = -log(1 - u^2) < 5, in sqrt(w) - 3 above (M. Giles,
# "Approximating the erfinv function"). Truncation at two standard deviations keeps w below 2.5.
_ERF_INV = (2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503,
            -0.00417768164, 0.246640727, 1.50140941)  # fmt: skip
_SQRT2 = np.float32(math.sqrt(2))
F32 = Float[np.ndarray, "..."]


def truncated_normal(key: Key, shape: tuple[int, ...]) -> F32:
    """Standard normal numbers within two standard deviations; not corrected to unit variance.

    Draws from the random stream that is set; call it on concrete keys, not under `jax.jit`.
    """
    bound = jax.lax.erf(np.float32(2) / _SQRT2)
    uniform = np.asarray(jax.random.uniform(key, shape, jnp.float32, minval=-bound, maxval=bound))
    below_two = np.nextafter(np.float32(2), np.float32(0))
    return np.clip(_SQRT2 * _erf_inv(uniform), -below_two, below_two)


def _erf_inv(u: F32) -> F32:
    w = -_log1p(-(u * u))
    return _polynomial(_ERF_INV, w - np.float32(2.5)) * u


def _log1p(x: F32) -> F32:
    square = x * x
    quotient = _polynomial(_LOG_P, x) / _polynomial(_LOG_Q, x)
    near_zero = x + _fused(x * square, quotient, np.float32(-0.5) * square)
    return np.where(np.abs(x) < _LOG_LIMIT, near_zero, np.asarray(jnp.log(1 + x)))


def _polynomial(coefficients: tuple[float, ...], x: F32) -> F32:
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = _fused(value, x, np.float32(coefficient))
    return value


def _fused(a: F32, b: F32, c: F32 | np.float32) -> F32:
    """a * b + c, rounded once."""
    return (a.astype(np.float64) * b + c).astype(np.float32)
