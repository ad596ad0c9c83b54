"""Metrics against their definitions, written out in float64 for one sequence at a time."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from repro.training.metrics import METRICS, cross_entropy, query_metrics

FEW = np.random.default_rng(0)
LOGITS = FEW.normal(0, 3, (60, 5)).astype(np.float32)
LABELS = FEW.integers(0, 5, (60, 4))


def softmax(scores: dict[int, float]) -> dict[int, float]:
    highest = max(scores.values(), default=0.0)
    powers = {label: np.exp(score - highest) for label, score in scores.items()}
    return {label: power / sum(powers.values()) for label, power in powers.items()}


def by_hand(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The metrics of one sequence; excluded labels simply are not there."""
    scores = {label: float(value) for label, value in enumerate(logits)}
    context, target = {int(label) for label in labels[:-1]}, int(labels[-1])
    inside = {label: score for label, score in scores.items() if label in context}
    outside = {label: score for label, score in scores.items() if label not in context}
    probability = softmax(scores)

    def accuracy(some: dict[int, float]) -> float:
        return float(max(some, key=lambda label: some[label]) == target) if some else 0.0

    return {
        "loss": -np.log(probability[target]) if target in probability else 0.0,
        "acc": accuracy(scores),
        "prob": probability.get(target, 0.0),
        "in_context_acc": accuracy(inside),
        "in_context_prob": softmax(inside).get(target, 0.0),
        "out_context_acc": accuracy(outside),
        "out_context_prob": softmax(outside).get(target, 0.0),
        "use_context_prob": sum(probability[label] for label in inside),
    }


def compare(logits: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    got = {
        name: np.asarray(value)
        for name, value in query_metrics(jnp.asarray(logits), jnp.asarray(labels)).items()
    }
    assert tuple(got) == METRICS
    for row in range(len(logits)):
        for metric, value in by_hand(logits[row], labels[row]).items():
            np.testing.assert_allclose(
                got[metric][row], value, rtol=2e-6, atol=1e-6, err_msg=f"{metric} {row}"
            )
    return got


def test_random_sequences() -> None:
    got = compare(LOGITS, LABELS)
    assert all(value.shape == (60,) for value in got.values())
    assert 0 < got["acc"].mean() < 1 and 0 < got["in_context_acc"].mean() < 1


def test_a_label_that_is_not_in_the_context() -> None:
    labels = LABELS.copy()
    labels[:, :-1] = (labels[:, -1:] + 1 + FEW.integers(0, 4, (60, 3))) % 5
    got = compare(LOGITS, labels)
    assert not got["in_context_acc"].any() and not got["in_context_prob"].any()
    assert got["out_context_acc"].any()


def test_a_label_that_is_no_output_has_no_loss() -> None:
    labels = LABELS.copy()
    labels[::2, -1] = 5
    labels[::3, 0] = 7
    got = compare(LOGITS, labels)
    assert not got["loss"][::2].any() and not got["acc"][::2].any() and got["loss"][1::2].all()


def test_logits_of_perfect_copying_are_finite() -> None:
    logits = np.full((1, 5), -1e9, np.float32)
    logits[0, [1, 3]] = [0.25, -0.5]
    got = compare(logits, np.array([[1, 3, 3]]))
    np.testing.assert_allclose(got["loss"], np.log1p(np.exp(0.75)), rtol=1e-6)


def test_cross_entropy_of_equal_logits_is_the_log_of_their_number() -> None:
    np.testing.assert_allclose(cross_entropy(jnp.zeros((3, 7)), jnp.array([0, 3, 6])), np.log(7), rtol=1e-6)


@pytest.mark.parametrize("shift", [-1000.0, 1000.0])
def test_adding_a_constant_changes_nothing(shift: float) -> None:
    plain = query_metrics(jnp.asarray(LOGITS), jnp.asarray(LABELS))
    moved = query_metrics(jnp.asarray(LOGITS) + np.float32(shift), jnp.asarray(LABELS))
    for name in METRICS:
        np.testing.assert_allclose(moved[name], plain[name], atol=5e-4)
