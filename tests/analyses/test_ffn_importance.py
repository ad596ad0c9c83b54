"""FFN importance from whole passes, and models in which the answer follows by construction."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from repro.analyses import ffn_importance, masked_scores
from repro.analyses.importance_specs import FfnImportance
from repro.data.scored_texts import Question, TaskSet
from repro.errors import UserError
from repro.interventions.masked_definition import log_likelihood
from repro.interventions.masks import Mask
from tests.analyses.scale_cases import task, texts, two_tasks
from tests.analyses.splitting import assert_split_equals_whole
from tests.models.tiny_models import tiny

SPEC = FfnImportance()


@pytest.fixture(scope="module")
def model():
    return tiny("opt", "sdpa", torch.float64)


def accuracy_by_hand(model, one: TaskSet, mask: Mask) -> float:
    chosen = []
    for question in one.questions:
        chances = [log_likelihood(model, question, place, mask)[0] for place in range(len(question.choices))]
        chosen.append(chances.index(max(chances)) in question.right)
    if one.metric == "accuracy":
        return sum(chosen) / len(chosen)
    groups = {question.group for question in one.questions}
    whole = [
        all(right for right, question in zip(chosen, one.questions, strict=True) if question.group == group)
        for group in groups
    ]
    return sum(whole) / len(whole)


def test_log_likelihoods_and_accuracies_are_those_of_whole_passes(model) -> None:
    data = two_tasks()
    arrays = ffn_importance.run(model, data, None, None, SPEC).arrays
    masks = [Mask.of(3), *(Mask.of(3, (), [layer]) for layer in range(3))]
    questions = [question for one in data.sets for question in one.questions]
    found = arrays["loglik"]
    assert list(found.axes) == ["ffn", "question", "choice"] and found.labels("ffn")[0] == "full"
    assert found.values.shape == (4, len(questions), max(len(one.choices) for one in questions))
    for number, question in enumerate(questions):
        for place in range(found.values.shape[2]):
            values = found.values[:, number, place]
            if place >= len(question.choices):
                assert np.isnan(values).all()
                continue
            expected = [log_likelihood(model, question, place, mask)[0] for mask in masks]
            np.testing.assert_allclose(values, expected, atol=1e-10)
    by_task = np.array([[accuracy_by_hand(model, one, mask) for mask in masks] for one in data.sets])
    np.testing.assert_allclose(arrays["task_accuracy"].values, by_task, atol=1e-12)
    np.testing.assert_allclose(arrays["accuracy"].values, by_task.mean(0), atol=1e-12)
    np.testing.assert_allclose(arrays["imp"].values, 100 * (by_task.mean(0)[0] - by_task.mean(0)[1:]))


def test_an_ffn_that_writes_nothing_is_worth_nothing_and_one_that_decides_is_worth_all() -> None:
    model = tiny("opt", "sdpa", torch.float64)
    with torch.no_grad():
        for layer in model.layers:
            for parameter in (*layer.out.parameters(), *layer.down.parameters()):
                parameter.zero_()
        # The FFN of layer 1 writes the direction of token 7, whatever it reads.
        model.layers[1].down.bias.add_(1e3 * model.unembedding[7])  # type: ignore[operator]
    asked = tuple(Question(((5, 6, number),), ((7,), (8,)), (0,)) for number in range(2, 6))
    away = tuple(replace(one, choices=((9,), (10,)), right=(0, 1)) for one in asked)
    data = texts(TaskSet("decided", 0, (), asked), TaskSet("open", 0, (), away))
    arrays = ffn_importance.run(model, data, None, None, SPEC).arrays
    worth = arrays["task_imp"]
    before = arrays["task_accuracy"].values[0, 2]
    np.testing.assert_allclose(worth.values, [[0, 100 * (1 - before), 0], [0, 0, 0]], atol=1e-12)
    assert before < 1 and arrays["ranking"].values.tolist() == [0, 2, 1]


def test_greedy_answers_and_vocabulary(model) -> None:
    questions = task("one", 1).questions
    first = tuple(
        replace(one, contexts=one.contexts[:1], choices=one.choices[:1], right=(0,)) for one in questions
    )
    greedy = tuple(_with_own_answer(model, one) for one in first[:4])
    data = texts(TaskSet("last word", 0, (), (*greedy, *first[4:]), "greedy_match"))
    arrays = ffn_importance.run(model, data, None, None, SPEC).arrays
    masks = [Mask.of(3), *(Mask.of(3, (), [layer]) for layer in range(3))]
    expected = [
        np.mean([log_likelihood(model, one, 0, mask)[1] for one in data.sets[0].questions]) for mask in masks
    ]
    np.testing.assert_allclose(arrays["accuracy"].values, expected)
    assert expected[0] >= 4 / 9
    with pytest.raises(UserError, match="is not among the first 3 that count"):
        ffn_importance.run(model, data, None, None, FfnImportance(vocabulary=3))
    with pytest.raises(UserError, match="got 99; the model has 61"):
        ffn_importance.run(model, data, None, None, FfnImportance(vocabulary=99))


def _with_own_answer(model, question: Question) -> Question:
    tokens = list(question.contexts[0])
    for _ in range(2):
        logits = model.hf(torch.tensor([tokens])).logits[0, -1]
        tokens.append(int(logits.argmax()))
    return replace(question, choices=(tuple(tokens[-2:]),))


def test_opt_counts_the_tokens_of_its_tokenizer(model) -> None:
    assert masked_scores.columns_of(model, "auto") is None
    opt = type("Opt", (), {"family": "opt", "vocabulary": 50272})
    assert masked_scores.columns_of(opt, "auto") == 50265  # type: ignore[arg-type]
    assert masked_scores.columns_of(opt, "all") is None  # type: ignore[arg-type]


def test_passes_and_chunks_do_not_matter(model) -> None:
    one, many = (
        ffn_importance.run(model, two_tasks(), None, None, FfnImportance(tokens=tokens, chunk=chunk)).arrays
        for tokens, chunk in ((1, 1), (1000, 64))
    )
    np.testing.assert_allclose(one["loglik"].values, many["loglik"].values, rtol=0, atol=1e-10)


def test_parts_are_the_whole(model, tmp_path: Path) -> None:
    spec = FfnImportance(tokens=40, chunk=4)
    assert_split_equals_whole(ffn_importance, model, two_tasks(), spec, 15, tmp_path, (4, 15))


def test_cells_are_found_again_by_weights_questions_and_mask(
    model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, int]] = []
    real = masked_scores.evaluate

    def counted(model, questions, masks, columns, tokens):
        calls.append((len(questions), len(masks)))
        return real(model, questions, masks, columns, tokens)

    monkeypatch.setattr(masked_scores, "evaluate", counted)
    spec = FfnImportance(cells=str(tmp_path / "cells"), chunk=8)
    whole = ffn_importance.run(model, two_tasks(), None, None, spec)
    assert calls == [(8, 4), (1, 4), (6, 4)]
    again = ffn_importance.run(model, two_tasks(), None, None, spec)
    assert len(calls) == 3
    np.testing.assert_array_equal(again.arrays["loglik"].values, whole.arrays["loglik"].values)
    path = sorted((tmp_path / "cells").glob("*/*.npz"))[0]
    path.write_bytes(path.read_bytes()[:50])
    ffn_importance.run(model, two_tasks(), None, None, spec)
    assert len(calls) == 4
    scores = masked_scores.MaskedScores(model, spec, None)
    scores.of(two_tasks().sets[1].questions, range(6), [Mask.of(3), Mask.of(3, [(0, 1)])])
    assert calls[-1] == (6, 1)
    ffn_importance.run(tiny("opt", "sdpa", torch.float64, seed=1), two_tasks(), None, None, spec)
    assert calls[-3:] == [(8, 4), (1, 4), (6, 4)]
    assert spec.fingerprint() == SPEC.fingerprint()


def test_what_is_refused(model) -> None:
    with pytest.raises(UserError, match="accuracy needs questions with choices, and one has none"):
        ffn_importance.run(model, texts(replace(task("one", 1), questions=())), None, None, SPEC)
    with pytest.raises(UserError, match="normalises after each sublayer"):
        ffn_importance.run(tiny("opt_post_norm"), two_tasks(), None, None, SPEC)
    long = replace(task("one", 1), questions=(Question((tuple(range(2, 40)),), ((3,), (4,)), (0,)),))
    with pytest.raises(
        UserError, match=r"one, question 0 has 39 tokens with choice 0, and the model takes 33"
    ):
        ffn_importance.run(model, texts(long), None, None, FfnImportance(overlength="error"))
    cut = ffn_importance.run(model, texts(long), None, None, SPEC)
    assert cut.scalars["truncated"] == 2
