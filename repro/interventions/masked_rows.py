"""Questions with choices as rows that share what their choices have in common.

The tokens that all choices begin with (context, and whatever else agrees) stand in a row once, then the rest
of each choice; a choice sees what is shared and itself. So a question costs its context once, and what
comes out for a token is what a pass over context and choice alone gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from repro.data.scored_texts import Ids, Question

FILLED = 0.85  # of the longest row of a batch, at least, so that little of it is padding


@dataclass(frozen=True)
class Target:
    """A token whose log-probability counts for a choice, and the column of its row that predicts it."""

    question: int
    choice: int
    column: int
    token: int


@dataclass(frozen=True)
class Row:
    """Input tokens, their positions, and whose they are: 0 is shared, c + 1 the choice c of the question."""

    tokens: Ids
    positions: Ids
    owner: Ids
    targets: tuple[Target, ...]


@dataclass(frozen=True, eq=False)
class RowBatch:
    """Rows padded on the right. seen: which column each column may see, the order of positions aside.

    row, column, token, question, choice: of every target, [N].
    """

    tokens: Int[Tensor, "R T"]
    positions: Int[Tensor, "R T"]
    seen: Bool[Tensor, "R T T"]
    row: Int[Tensor, " N"]
    column: Int[Tensor, " N"]
    token: Int[Tensor, " N"]
    question: Int[Tensor, " N"]
    choice: Int[Tensor, " N"]


def pack(number: int, question: Question, most: int) -> list[Row]:
    """The rows of a question: one if its choices share a beginning, else one for each.

    most: input tokens that the model takes. Longer ones lose tokens from the left, keeping `most` inputs and
    the last target; targets that lose all that is before them do not count.
    """
    sequences, starts = [], []
    for choice, ids in enumerate(question.choices):
        context = question.context(choice)
        whole = context + ids
        cut = max(0, len(whole) - most - 1)
        sequences.append(whole[cut:])
        starts.append(max(len(context) - cut, 1))
    shared = _common(sequences)
    choices = range(len(sequences))
    if shared:
        return [_row(number, sequences, starts, list(choices), shared)]
    return [_row(number, sequences, starts, [one], len(sequences[one]) - 1) for one in choices]


def _common(sequences: Sequence[Ids]) -> int:
    """How many input tokens all sequences begin with; the last token of each is no input."""
    shortest = min(len(ids) for ids in sequences) - 1
    for place in range(shortest):
        if any(ids[place] != sequences[0][place] for ids in sequences):
            return place
    return shortest


def _row(
    number: int, sequences: Sequence[Ids], starts: Sequence[int], choices: Sequence[int], shared: int
) -> Row:
    tokens = list(sequences[choices[0]][:shared])
    positions, owner, targets = list(range(shared)), [0] * shared, []
    for choice in choices:
        ids, offset = sequences[choice], len(tokens) - shared
        tokens += ids[shared:-1]
        positions += range(shared, len(ids) - 1)
        owner += [choice + 1] * (len(ids) - 1 - shared)
        for at in range(starts[choice], len(ids)):
            column = at - 1 if at <= shared else at - 1 + offset
            targets.append(Target(number, choice, column, ids[at]))
    return Row(tuple(tokens), tuple(positions), tuple(owner), tuple(targets))


def batches(rows: Sequence[Row], tokens: int) -> Iterator[list[Row]]:
    """Rows of similar length together, longest first, with at most so many padded tokens (or one row)."""
    ordered = sorted(rows, key=lambda one: -len(one.tokens))
    for some in alike([len(row.tokens) for row in ordered], tokens):
        yield [ordered[index] for index in some]


def alike(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Neighbours among falling lengths, with at most so many padded tokens together (or one alone).

    What is much shorter than the first one starts anew: padding costs more than a smaller batch.
    """
    waiting: list[int] = []
    for index, length in enumerate(lengths):
        longest = lengths[waiting[0]] if waiting else 0
        if waiting and (longest * (len(waiting) + 1) > tokens or length < FILLED * longest):
            yield waiting
            waiting = []
        waiting.append(index)
    if waiting:
        yield waiting


def stack(rows: Sequence[Row]) -> RowBatch:
    """Rows as tensors."""
    width = max(len(row.tokens) for row in rows)
    tokens, positions = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(2))
    owner = torch.full((len(rows), width), -1)
    for index, row in enumerate(rows):
        tokens[index, : len(row.tokens)] = torch.tensor(row.tokens)
        positions[index, : len(row.tokens)] = torch.tensor(row.positions)
        owner[index, : len(row.tokens)] = torch.tensor(row.owner)
    query, key = owner[:, :, None], owner[:, None, :]
    targets = [(index, target) for index, row in enumerate(rows) for target in row.targets]
    columns = torch.tensor(
        [[index, one.column, one.token, one.question, one.choice] for index, one in targets]
    ).view(-1, 5)
    return RowBatch(tokens, positions, (key == 0) | (key == query), *columns.unbind(1))
