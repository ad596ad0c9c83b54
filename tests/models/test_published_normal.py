from __future__ import annotations

import jax
import numpy as np
from scipy import stats

from repro.models.published_normal import truncated_normal


def test_numbers_are_those_of_this_jax_but_for_the_last_bit() -> None:
    key = jax.random.PRNGKey(3)
    got = truncated_normal(key, (300, 200))
    expected = np.asarray(jax.random.truncated_normal(key, -2.0, 2.0, (300, 200)))
    np.testing.assert_array_max_ulp(got, expected, maxulp=4)
    assert np.mean(got != expected) < 0.01


def test_numbers_follow_the_truncated_normal_distribution() -> None:
    numbers = truncated_normal(jax.random.PRNGKey(0), (20_000,))
    assert np.abs(numbers).max() < 2
    assert stats.kstest(numbers, stats.truncnorm(-2, 2).cdf).pvalue > 0.01
