"""Which classes, exemplars and label pairs belong to training, validation and test."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int

from repro.data.random_streams import on_published_streams
from repro.data.specs import Sequences
from repro.errors import UserError

PARTS = ("train", "val", "test")
LabelPairs = Int[np.ndarray, "pair 2"]


class Range(NamedTuple):
    """Indices start, ..., start + size - 1."""

    start: int
    size: int

    def require_some(self, where: str) -> None:
        """Raise `UserError` if there is nothing to draw from."""
        if self.size == 0:
            raise UserError(f"{where}: this part of the split is empty, so there is nothing to draw from")


def ranges(split: tuple[int | str, int | str, int | str], available: int, key: str) -> dict[str, Range]:
    """Contiguous index ranges of train, val, test and `all` among `available` classes or exemplars.

    `key` is `class_split` or `exemplar_split`, for messages. The word `rest` takes what the numbers
    leave. Raises `UserError` if the numbers do not add up to `available`.
    """
    named, what = sum(share for share in split if isinstance(share, int)), key.removesuffix("_split")
    got = f"sequences.{key}: {list(split)} (train, val, test)"
    if named > available:
        raise UserError(
            f"{got} needs {named} of the {what} axis, and the features have {available}."
            f" Use smaller numbers or features with more"
        )
    if "rest" not in split and named != available:
        raise UserError(
            f"{got} adds up to {named}, expected {available}, the size of the features' {what} axis."
            f" Write the word rest for one of them to take what is left"
        )
    sizes = [int(share) if share != "rest" else available - named for share in split]
    starts = np.cumsum([0, *sizes])
    parts = {name: Range(int(starts[i]), sizes[i]) for i, name in enumerate(PARTS)}
    return {**parts, "all": Range(0, available)}


def class_ranges(spec: Sequences, classes: int) -> dict[str, Range]:
    """Class indices of each part, given the number of classes in the features (sheet C.2)."""
    return ranges(spec.class_split, classes, "class_split")


def exemplar_ranges(spec: Sequences, exemplars: int) -> dict[str, Range]:
    """Exemplar indices of each part, given the number of exemplars in the features (sheet C.2)."""
    return ranges(spec.exemplar_split, exemplars, "exemplar_split")


@on_published_streams
def label_pairs(spec: Sequences) -> dict[str, LabelPairs]:
    """Unordered label pairs of each part, and `all` of them (sheet C.3). Empty without labels.

    Test and validation are the first rows of the permuted table, training the rest. Raises
    `UserError` if a label would never occur in training.
    """
    first, second = np.triu_indices(spec.labels, k=1)
    table = np.stack([first, second], axis=1).astype(np.int32)
    counts = spec.pair_counts()
    if spec.label_pair_split is None:
        return {"train": table, "val": table[:0], "test": table[:0], "all": table}
    shuffled = np.asarray(
        jax.random.permutation(jax.random.PRNGKey(spec.label_pair_seed), jnp.asarray(table))
    )
    held_out = counts["test"] + counts["val"]
    train = shuffled[held_out:]
    missing = sorted(set(range(spec.labels)) - set(train.flatten().tolist()))
    if missing:
        raise UserError(
            f"sequences.label_pair_split: labels {missing} occur in no training pair ({len(train)} pairs"
            f" of {spec.labels} labels). Choose another label_pair_seed"
            f" (now {spec.label_pair_seed}), or hold out less"
        )
    return {
        "train": train,
        "val": shuffled[counts["test"] : held_out],
        "test": shuffled[: counts["test"]],
        "all": table,
    }


def class_distribution(size: int, alpha: float) -> Float32[Array, " class"]:
    """Probability of each training class, proportional to 1 / rank^alpha in order of index (sheet C.2)."""
    weights = 1 / jnp.arange(1, size + 1, dtype=jnp.float32) ** alpha
    return weights / jnp.sum(weights)
