"""Losses and head scores of an unmanipulated model, each distinct prefix computed once.

Attention is causal, so a token's state depends on its prefix alone, and sequences that enumerate all
choices share most of theirs. The prefixes form a tree. Its trunk, down to the last context item,
is computed whole; below, each last item (a "pivot") has a small subtree of labels and queries.
Pivots whose subtrees fit the same box run side by side, a few hundred sequences at a time so that
they stay in the processor's cache. Their index is the last axis of every array: what a subtree's nodes
share is then broadcast, not copied, and every loop over channels is vectorised over pivots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from repro.analyses.icl_prefix_pass import Cache, KeyValue, Position, logits, take
from repro.models.icl_transformer import IclTransformerModel
from repro.training.compiling import jit
from repro.training.metrics import cross_entropy

LEAVES = 256  # sequences in a chunk: keys, values and states of the default model stay within 1 MB
LANES = 16  # pivots in a chunk are a multiple of this: one vector register
MOST_BOXES = 4  # each box is compiled apart


class Enumerated(Protocol):
    """What is needed of a set of sequences; the last item is the query, `correct` the item of its class."""

    @property
    def items(self) -> Int[np.ndarray, "sequence item"]: ...
    @property
    def labels(self) -> Int[np.ndarray, "sequence item"]: ...
    @property
    def correct(self) -> Int[np.ndarray, " sequence"]: ...


class Level(NamedTuple):
    """The distinct prefixes that end at one token position, those of one parent side by side.

    token: row of the feature table or of the label table. count: sequences with this prefix.
    """

    token: Int[np.ndarray, " prefix"]
    parent: Int[np.ndarray, " prefix"]
    count: Int[np.ndarray, " prefix"]


class Tree(NamedTuple):
    """Prefixes by token position; those of the last one differ in token, target or correct item.

    leaf: the last prefix of each sequence. label_values: the labels that the label table has.
    """

    levels: list[Level]
    leaf: Int[np.ndarray, " sequence"]
    target: Int[np.ndarray, " prefix"]
    correct: Int[np.ndarray, " prefix"]
    label_values: Int[np.ndarray, " label"]


class Box(NamedTuple):
    """Chunks of pivots whose subtrees fit one box; what a subtree lacks is filled up with weight 0.

    ancestors: prefixes at the trunk's token positions. Tokens of leaves have length 1 on an axis along
    which all are equal. leaf: the prefix at each place, -1 where filled up.
    """

    ancestors: tuple[Int[np.ndarray, "chunk pivot"], ...]
    pivot: Int[np.ndarray, "chunk pivot"]
    label: Int[np.ndarray, "chunk label 1 pivot"]
    label_weight: Float[np.ndarray, "chunk label 1 pivot"]
    query: Int[np.ndarray, "chunk _ _ pivot"]
    target: Int[np.ndarray, "chunk label query pivot"]
    sign: Float[np.ndarray, "chunk label query pivot"]


def tree(sequences: Enumerated) -> Tree:
    """The prefix tree of sequences of at least two pairs and a query, in any order."""
    items, labels = np.asarray(sequences.items), np.asarray(sequences.labels)
    label_values, label_tokens = np.unique(labels[:, :-1], return_inverse=True)
    tokens = np.stack([items, items], axis=2).reshape(len(items), -1)[:, :-1].astype(np.int64)
    tokens[:, 1::2] = label_tokens.reshape(len(items), -1)
    _, answer = np.unique(np.stack([labels[:, -1], sequences.correct], axis=1), axis=0, return_inverse=True)
    node, levels, first = np.zeros(len(items), np.int64), [], np.zeros(0, np.int64)
    for position, token in enumerate(tokens.T):
        key = node * (token.max() + 1) + token
        if position == tokens.shape[1] - 1:
            key = key * (answer.max() + 1) + answer.ravel()
        above = node
        _, first, node, count = np.unique(key, return_index=True, return_inverse=True, return_counts=True)
        node = node.ravel()
        levels.append(Level(token[first].astype(np.int32), above[first], count))
    return Tree(levels, node, labels[first, -1], np.asarray(sequences.correct)[first], label_values)


def ancestors(levels: Sequence[Level], node: Int[np.ndarray, "*shape"]) -> list[Int[np.ndarray, "*shape"]]:
    """The prefixes above some of the last level, one array for each token position before it."""
    above: list[np.ndarray] = []
    for level in reversed(levels[1:]):
        node = level.parent[node]
        above.insert(0, node)
    return above


def _children(level: Level, parents: int) -> tuple[np.ndarray, np.ndarray]:
    """First child and number of children of each prefix of the level before."""
    count = np.bincount(level.parent, minlength=parents)
    return np.cumsum(count) - count, count


def boxes(grown: Tree) -> tuple[list[Box], Int[np.ndarray, " sequence"]]:
    """All sequences in boxes, and the place of each in the boxes' leaves, laid end to end."""
    levels = grown.levels
    pivots = len(levels[-3].token)
    _, labels = _children(levels[-2], pivots)
    _, queries = _children(levels[-1], len(levels[-2].token))
    most = np.zeros(pivots, np.int64)
    np.maximum.at(most, levels[-2].parent, queries)
    shapes, of, count = np.unique(
        np.stack([labels, most], axis=1), axis=0, return_inverse=True, return_counts=True
    )
    size = count * shapes.prod(axis=1)
    # A box of its own is worth compiling only if it has several chunks.
    kept = np.argsort(-size)[: min(MOST_BOXES - 1, int(np.sum(size >= 8 * LEAVES)))]
    rest = np.setdiff1d(np.arange(len(shapes)), kept)
    groups = [kept[i : i + 1] for i in range(len(kept))] + ([rest] if len(rest) else [])
    place, begin, made = np.zeros(len(levels[-1].token), np.int64), 0, []
    for group in groups:
        box, leaf = _box(grown, np.flatnonzero(np.isin(of.ravel(), group)), *shapes[group].max(axis=0))
        there = np.flatnonzero(leaf.ravel() >= 0)
        place[leaf.ravel()[there]] = begin + there
        begin += leaf.size
        made.append(box)
    return made, place[grown.leaf]


def _box(
    grown: Tree, pivots: Int[np.ndarray, " pivot"], labels: int, queries: int
) -> tuple[Box, Int[np.ndarray, "chunk label query pivot"]]:
    """A box of some pivots, and the prefix at each place of its leaves, -1 where filled up."""
    levels = grown.levels
    most = max(LANES, LEAVES // (labels * queries) // LANES * LANES)
    chunks = -(-len(pivots) // most)
    lanes = -(-len(pivots) // (chunks * LANES)) * LANES
    filled = np.arange(chunks * lanes).reshape(chunks, lanes) >= len(pivots)
    pivot = np.where(filled, pivots[0], np.resize(pivots, chunks * lanes).reshape(chunks, lanes))

    first, count = _children(levels[-2], len(levels[-3].token))
    number = np.arange(labels)[:, None, None]
    parent = pivot[:, None, None]
    label_there = (number < count[parent]) & ~filled[:, None, None]
    label = np.where(number < count[parent], first[parent] + number, first[parent])
    first, count = _children(levels[-1], len(levels[-2].token))
    number = np.arange(queries)[:, None]
    there = label_there & (number < count[label])
    leaf = np.where(number < count[label], first[label] + number, first[label])

    query = levels[-1].token[leaf]
    for axis in (1, 2):
        if (query == query.take([0], axis)).all():
            query = query.take([0], axis)
    return Box(
        tuple(one.astype(np.int32) for one in ancestors(levels[:-2], pivot)),
        levels[-3].token[pivot],
        levels[-2].token[label],
        np.where(label_there, levels[-2].count[label], 0).astype(np.float32),
        query,
        grown.target[leaf].astype(np.int32),
        np.where(there, levels[-1].count[leaf] * (1 - 2 * grown.correct[leaf]), 0).astype(np.float32),
    ), np.where(there, leaf, -1)


class PrefixScores(NamedTuple):
    """Of each sequence: cross entropy (nat) and predicted label. Of each layer and head: mean scores."""

    loss: Float[np.ndarray, " sequence"]
    predicted: Int[np.ndarray, " sequence"]
    induction: Float[np.ndarray, "layer head"]
    previous_token: Float[np.ndarray, "layer head"]


class PrefixPass:
    """Measures unmanipulated models of one architecture on one set of sequences; compiled once.

    rows: the features that the sequences' items index.
    """

    def __init__(self, sequences: Enumerated, rows: Float[np.ndarray, "row dim"]) -> None:
        grown = tree(sequences)
        found, self._place = boxes(grown)
        self._count, self._contexts = len(sequences.items), len(grown.levels) // 2
        self._boxes = [jax.tree.map(jnp.asarray, box) for box in found]
        trunk, length = grown.levels[:-3], len(grown.levels)
        above = [
            ancestors(trunk[:i], level.parent) + [level.parent] if i else [] for i, level in enumerate(trunk)
        ]

        def positions(model: IclTransformerModel) -> list[Position]:
            items = model.example_embed(jnp.asarray(rows))
            one_hot = jax.nn.one_hot(grown.label_values, model.outputs, dtype=items.dtype)
            tables = (items, model.label_embed(one_hot))
            return [
                Position(model, at, tables[at % 2], length, at % 2 == 1 or at == length - 1, at == length - 1)
                for at in range(length)
            ]

        def stem(model: IclTransformerModel) -> tuple[list[list[KeyValue]], Any]:
            """Keys and values at each of the trunk's token positions; scores summed over sequences."""
            made: list[list[KeyValue]] = []
            previous = jnp.zeros((len(model.blocks), model.heads))
            for at, (position, level) in enumerate(zip(positions(model), trunk, strict=False)):
                new, patterns, _ = position(jnp.asarray(level.token), _gathered(made, above[at], model))
                made.append(new)
                if at % 2:
                    previous += jnp.stack(
                        [pattern[-2] @ level.count.astype(np.float32) for pattern in patterns]
                    )
            return made, previous

        def branch(model: IclTransformerModel, made: Any, box: Box) -> tuple[Any, ...]:
            places = positions(model)

            def chunk(box: Any) -> tuple[Any, ...]:  # a Box, without its axis of chunks
                cache = _gathered(made, [one[None, None] for one in box.ancestors], model)
                new, _, _ = places[-3](box.pivot[None, None], cache)
                cache = [[*cache[i], one] for i, one in enumerate(new)]
                new, patterns, _ = places[-2](box.label, cache)
                previous = [jnp.sum(pattern[-2] * box.label_weight, axis=(1, 2)) for pattern in patterns]
                cache = [[*cache[i], one] for i, one in enumerate(new)]
                _, patterns, x = places[-1](box.query, cache)
                induction = [jnp.sum((one[1] - one[3]) * box.sign, axis=(1, 2)) for one in patterns]
                assert x is not None
                read = logits(model, x)
                return (
                    cross_entropy(read, box.target),
                    jnp.argmax(read, axis=-1),
                    jnp.stack(induction),
                    jnp.stack(previous),
                )

            return jax.lax.map(chunk, box)

        self._stem, self._branch = jit(stem), jit(branch)

    def __call__(self, model: IclTransformerModel) -> PrefixScores:
        """Measure one model."""
        made, trunk = self._stem(model)
        parts = [[np.asarray(one) for one in self._branch(model, made, box)] for box in self._boxes]
        loss, predicted = (np.concatenate([part[i].ravel() for part in parts])[self._place] for i in (0, 1))
        induction, previous = (
            np.sum([part[i].sum(axis=(0, 3), dtype=np.float64) for part in parts], axis=0) for i in (2, 3)
        )
        previous = (previous + np.asarray(trunk, np.float64)) / self._contexts
        return PrefixScores(loss, predicted, induction / self._count, previous / self._count)


def _gathered(made: Sequence[Sequence[KeyValue]], above: Sequence[Any], model: IclTransformerModel) -> Cache:
    """By layer, the keys and values of ancestors, from those of all prefixes at their positions."""
    return [
        [KeyValue(*(take(part, node) for part in one[layer])) for one, node in zip(made, above, strict=False)]
        for layer in range(len(model.blocks))
    ]
