"""Tasks of small language models: pure functions of seed and step, and nothing of the probes in training."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from repro.data import icl_world
from repro.data.ioi_toy import WORLD, Toy
from repro.data.lm_task_specs import FactsTask, InContextTask, IoiTask, RepeatsTask, Task
from repro.data.lm_tasks import Scored, build, generator, padded
from repro.errors import UserError

SPECS: list[Task] = [
    RepeatsTask(vocabulary=20, length=24, probe_sequences=30),
    IoiTask(probe_sentences=60),
    FactsTask(subjects=20, probe_sentences=60),
    InContextTask(probe_sequences=20, repeats_first=0),
]


def name(spec: Task) -> str:
    return spec.kind


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_a_batch_depends_on_seed_and_step_alone(spec: Task) -> None:
    task, other = build(spec), build(spec)
    first = task.batch(3, 5, 8)
    task.batch(0, 0, 4)
    again = other.batch(3, 5, 8)
    assert np.array_equal(first.tokens, again.tokens) and np.array_equal(first.scored, again.scored)
    for seed, step in ((3, 6), (4, 5), (5, 3)):
        assert not np.array_equal(first.tokens, task.batch(seed, step, 8).tokens)


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_sequences_fit_the_vocabulary_and_the_context(spec: Task) -> None:
    task = build(spec)
    for scored in (task.batch(0, 0, 16), *task.probes().values()):
        assert scored.tokens.min() >= 0 and scored.tokens.max() < len(task.vocabulary)
        assert scored.tokens.shape[1] <= spec.longest
        assert scored.scored.any(axis=1).all()


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_probes_are_those_the_spec_names_and_always_the_same(spec: Task) -> None:
    first, again = build(spec).probes(), build(spec).probes()
    assert {key: probe.rivals is not None for key, probe in first.items()} == spec.probes
    for key, probe in first.items():
        assert np.array_equal(probe.tokens, again[key].tokens)


def test_repeats_are_permutations_again_and_again() -> None:
    task = build(RepeatsTask(vocabulary=40, length=32))
    batch, periods = task.batch(1, 2, 200), set()
    for tokens, scored in zip(batch.tokens, batch.scored, strict=True):
        period = next(n for n in range(1, 33) if (tokens[n:] == tokens[:-n]).all())
        assert len(set(tokens[:period])) == period
        assert scored.tolist() == [column > period for column in range(32)]
        periods.add(period)
    assert periods == set(range(4, 17))


def test_probes_of_repeats_have_the_named_periods() -> None:
    for key, period in (("quarter", 12), ("third", 16), ("half", 24)):
        probe = build(RepeatsTask(vocabulary=64, length=48)).probes()[key]
        assert (probe.tokens[:, period:] == probe.tokens[:, :-period]).all()
        assert (probe.scored.sum(axis=1) == 48 - period - 1).all()


def test_too_few_tokens_for_a_permutation_are_refused() -> None:
    with pytest.raises(UserError, match="model.task.vocabulary=24"):
        RepeatsTask(vocabulary=23, length=48)


def pairs_in(task: object, rows: np.ndarray) -> list[frozenset[str]]:
    vocabulary = task.vocabulary  # type: ignore[attr-defined]
    return [frozenset(vocabulary[i] for i in row) & frozenset(WORLD.names) for row in rows]


def test_pairs_that_are_held_out_are_not_trained_on() -> None:
    task, toy = build(IoiTask()), Toy()
    held_out = {frozenset(pair) for pair in toy.pairs("held_out")}
    assert len(held_out) == 354
    trained = [pair for step in range(40) for pair in pairs_in(task, task.batch(0, step, 64).tokens)]
    assert all(len(pair) == 2 for pair in trained) and not held_out & set(trained)
    assert set(pairs_in(task, task.probes()["held_out"].tokens)) <= held_out
    names = set(itertools.chain.from_iterable(trained))
    assert names == set(WORLD.names)  # every single name is seen


def test_every_word_of_a_sentence_is_predicted_but_no_padding() -> None:
    task = build(IoiTask())
    batch = task.batch(0, 0, 64)
    for tokens, scored in zip(batch.tokens, batch.scored, strict=True):
        words = 1 + scored.sum()
        assert scored.tolist() == [0 < column < words for column in range(len(tokens))]
        assert (tokens[words:] == task.filler).all()
        assert task.vocabulary[tokens[0]] == task.start
        assert task.vocabulary[tokens[words - 1]] in WORLD.names


def test_the_last_name_is_due_and_the_subject_is_its_rival() -> None:
    task = build(IoiTask(probe_sentences=80))
    probes = task.probes()
    held_out, third = probes["held_out"], probes["abc"]
    for probe, givers in ((held_out, 1), (third, 0)):
        assert (probe.scored.sum(axis=1) == 1).all() and probe.rivals is not None
        for tokens, scored, rivals in zip(probe.tokens, probe.scored, probe.rivals, strict=True):
            end = int(scored.argmax())
            before, due, rival = tokens[:end].tolist(), tokens[end], rivals[end]
            assert (before.count(due), before.count(rival)) == (1, 1 + givers)
            names = {task.vocabulary[i] for i in tokens} & set(WORLD.names)
            assert len(names) == 3 - givers
    changed = (held_out.tokens[:40] != third.tokens[::2]).sum(axis=1)
    assert (changed == 1).all()  # the giver alone
    changed = (third.tokens[::2] != third.tokens[1::2]).sum(axis=1)
    assert len(third.tokens) == 80 and (changed == 3).all()  # the two names, and the one that is due


def test_scored_tokens_need_something_before_them() -> None:
    tokens = np.zeros((1, 3), int)
    with pytest.raises(ValueError, match="nothing before it"):
        Scored(tokens, np.array([[True, False, True]]))
    with pytest.raises(ValueError, match="one shape"):
        Scored(tokens, np.array([[False, True]]))


def test_padding_and_streams() -> None:
    assert padded([[1, 2, 3], [4]], 9).tolist() == [[1, 2, 3], [4, 9, 9]]
    drawn = {generator(stream, *place).integers(2**62) for stream in "ab" for place in ((0, 1), (1, 0), (1,))}
    assert len(drawn) == 6


def test_answers_in_context_are_scored_where_they_can_be_known() -> None:
    """Labels: the item stood before, with this label. Groups: one of its category. Pairs: the pair itself."""
    task, words = build(InContextTask(probe_sequences=40)), icl_world.WORDS
    probes = task.probes()
    for kind, key in (("labels", lambda word: word), ("groups", icl_world.CATEGORY.__getitem__)):
        for tokens, scored in zip(probes[kind].tokens.tolist(), probes[kind].scored.tolist(), strict=True):
            said: dict[str, str] = {}
            for place in range(0, len(tokens) - 2, 3):
                item, label, sign = (words[i] for i in tokens[place : place + 3])
                if (item, label) == (icl_world.START, icl_world.START):
                    break  # padding
                assert sign == icl_world.NEXT and not scored[place] and not scored[place + 2]
                assert scored[place + 1] == (key(item) in said)
                assert said.setdefault(key(item), label) == label, "one label for one item or category"
    pairs = probes["pairs"]
    for tokens, scored in zip(pairs.tokens.tolist(), pairs.scored.tolist(), strict=True):
        start = int(tokens[0] == 0)
        seen = dict[int, int]()
        for place in range(start, len(tokens) - 1, 2):
            first, second = tokens[place : place + 2]
            if first == 0:
                break
            assert scored[place + 1] == (first in seen) and seen.setdefault(first, second) == second


def test_first_a_model_of_tasks_in_context_sees_repeats_alone() -> None:
    task = build(InContextTask(repeats_first=10))
    early, late = task.batch(0, 9, 32), task.batch(0, 10, 32)
    signs = [icl_world.WORDS.index(sign) for sign in (icl_world.IS, icl_world.NEXT)]
    assert not np.isin(early.tokens, signs).any() and np.isin(late.tokens, signs).any()
    assert not (early.tokens == 0).any()
    for row, scored in zip(early.tokens, early.scored, strict=True):
        period = next(n for n in range(1, 48) if (row[n:] == row[:-n]).all())
        assert 6 <= period <= 24 and (scored == (np.arange(48) > period)).all()


def test_tasks_of_the_small_world() -> None:
    for name, task in icl_world.BY_NAME.items():
        docs = icl_world.documents(name, "eval", 30, 0)
        assert docs == icl_world.documents(name, "eval", 30, 0)
        assert docs != icl_world.documents(name, "train", 30, 0) != icl_world.documents(name, "train", 30, 1)
        for doc in docs:
            words, right = doc["text"].split(), doc["choices"][doc["gold"]]
            assert set(words) | set(doc["choices"]) <= set(icl_world.WORDS)
            assert len(set(doc["choices"])) == len(doc["choices"]) >= 2
            if task.kind == "knowledge":
                assert words[0] in icl_world.CATEGORIES[right]
            elif task.kind == "recall":
                assert words[words.index(words[-1]) + 1] == right
            elif task.kind == "completion":
                assert words == [*words[:3], *words[:2]] and right == words[2]
            else:
                key = words[0] if task.kind == "labels" else icl_world.CATEGORY[words[0]]
                assert right == dict(zip(task.inputs, task.labels, strict=True))[key]
