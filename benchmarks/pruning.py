"""Pruning on an OPT-125M-shaped model: one sweep for many masks against one pass a mask and choice.

    OMP_NUM_THREADS=1 python benchmarks/pruning.py [--questions 6] [--sample 3]             (one thread)

Random weights; questions with contexts of 20 to 80 tokens and four choices of 2 to 16 (the tasks at 0 shots
have 14 to 339 tokens). The sweep does the whole model, every FFN alone and ten levels of pruned heads (0 to
90 %, of which 0 is the whole model) of all questions. The plain definition does a sample of masks: hooks that
multiply, context and choice in one sequence, the four choices of a question as one padded batch, or one at a
time, with logits at all positions, as in the released code, or at those of the choice. All in one process;
log-likelihoods must agree to 1e-4 nats and rankings of FFNs be identical, or it is an error.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import transformers

from repro.analyses.masked_scores import evaluate
from repro.data.scored_texts import Question
from repro.data.token_batch import TokenBatch
from repro.interventions.lm_run import run
from repro.interventions.masked_definition import edits_of
from repro.interventions.masks import Mask, prune, rank_ffns
from repro.models.huggingface import wrap
from repro.models.language_model import LanguageModel

CHOICES = 4


def model_and_questions(count: int) -> tuple[LanguageModel, list[Question]]:
    """OPT-125M's shape, and random questions."""
    torch.manual_seed(0)
    rng = random.Random(0)
    config = transformers.OPTConfig()
    model = wrap(transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa"))

    def ids(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(4, 50000) for _ in range(length))

    questions = [
        Question((ids(20 + (60 * i) // max(count - 1, 1)),),
                 tuple(ids(rng.randint(2, 16)) for _ in range(CHOICES)), (rng.randrange(CHOICES),))
        for i in range(count)
    ]  # fmt: skip
    return model, questions


def all_masks(model: LanguageModel) -> list[Mask]:
    """The whole model, every FFN alone, and heads pruned by a random ranking."""
    rank = np.random.default_rng(0).permutation(model.depth * model.heads)
    alone = [Mask.of(model.depth, (), [layer]) for layer in range(model.depth)]
    levels = [prune(model.depth, model.heads, rank, percent) for percent in range(0, 100, 10)]
    return [Mask.of(model.depth), *alone, *levels]


def together(model: LanguageModel, question: Question, mask: Mask) -> list[float]:
    """The choices of a question as one padded batch, logits at all positions."""
    rows = [question.contexts[0] + ids for ids in question.choices]
    logits = run(model, TokenBatch.of([row[:-1] for row in rows]), edits_of(mask)).logits
    assert logits is not None
    return [_summed(each, row, len(question.contexts[0])) for each, row in zip(logits, rows, strict=True)]


def one_by_one(model: LanguageModel, question: Question, mask: Mask) -> list[float]:
    """A pass for each choice, logits at all positions."""
    found = []
    for ids in question.choices:
        row = question.contexts[0] + ids
        logits = run(model, TokenBatch.of([row[:-1]]), edits_of(mask)).logits
        assert logits is not None
        found.append(_summed(logits[0], row, len(question.contexts[0])))
    return found


def own_rows(model: LanguageModel, question: Question, mask: Mask) -> list[float]:
    """The choices as one padded batch, logits at the rows of choices alone."""
    rows, first = [question.contexts[0] + ids for ids in question.choices], len(question.contexts[0])
    places = [(place, at) for place, row in enumerate(rows) for at in range(first - 1, len(row) - 1)]
    row, column = (torch.tensor(part) for part in zip(*places, strict=True))
    batch = TokenBatch.of([one[:-1] for one in rows])
    logits = run(model, batch, edits_of(mask), logits=(row, column)).logits
    assert logits is not None
    chances = torch.log_softmax(logits, -1)
    targets = torch.tensor([rows[place][at + 1] for place, at in places])
    each = chances.gather(1, targets[:, None])[:, 0].double()
    return [float(each[row == place].sum()) for place in range(len(rows))]


def _summed(logits: torch.Tensor, row: Sequence[int], first: int) -> float:
    chances = torch.log_softmax(logits[first - 1 : len(row) - 1], -1)
    return float(chances.gather(1, torch.tensor(row[first:])[:, None]).double().sum())


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Processor time of a call, and what it gave."""
    begin = time.process_time()
    value = call()
    return time.process_time() - begin, value


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="pruning: one sweep against a pass a mask and choice")
    parser.add_argument("--questions", type=int, default=6)
    parser.add_argument("--sample", type=int, default=3, help="masks that plain passes are measured on")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, questions = model_and_questions(options.questions)
    masks = all_masks(model)
    distinct = list(dict.fromkeys(masks))
    evaluate(model, questions[:1], distinct, None, 2048)  # warm
    took, found = seconds(lambda: evaluate(model, questions, distinct, None, 2048))
    ways = {"one choice a pass, all logits": one_by_one, "four choices a pass, all logits": together,
            "four choices a pass, logits of choices": own_rows}  # fmt: skip
    times: dict[str, list[float]] = {way: [] for way in ways}
    chosen = random.Random(1).sample(range(len(distinct)), min(options.sample, len(distinct)))
    worst = 0.0
    for place in [0, *chosen]:
        for way, call in ways.items():
            spent, value = seconds(lambda: [call(model, one, distinct[place]) for one in questions])  # noqa: B023
            times[way].append(spent)
            worst = max(worst, float(np.abs(np.array(value) - found.log_likelihood[place]).max()))
    again, _ = seconds(lambda: evaluate(model, questions, distinct, None, 2048))
    each = min(took, again) / len(distinct)
    _same_ranking(model, questions, distinct, found.log_likelihood)
    print(f"{len(questions)} questions, {len(distinct)} masks (whole, {model.depth} FFNs, 9 levels),"
          f" {torch.get_num_threads()} thread")  # fmt: skip
    print(f"sweep: {took:.2f} s and {again:.2f} s of processor time, {1000 * each:.0f} ms a mask")
    for way, spent in times.items():
        mean = sum(spent) / len(spent)
        print(f"{way}: {1000 * mean:.0f} ms a mask ({len(spent)} measured), ratio {mean / each:.1f}")
    print(f"largest difference of a log-likelihood: {worst:.1e} nats")
    if worst > 1e-4:
        raise SystemExit("sweep and plain passes differ by more than 1e-4 nats")


def _same_ranking(
    model: LanguageModel, questions: Sequence[Question], masks: Sequence[Mask], found: np.ndarray
) -> None:
    """FFNs must be in the same order by accuracy lost, and by log-likelihood of the right choice lost."""
    right = [question.right[0] for question in questions]
    plain = np.array([[own_rows(model, one, mask) for one in questions] for mask in masks[: model.depth + 1]])

    def rankings(chances: np.ndarray) -> list[list[int]]:
        accuracy = (chances.argmax(-1) == right).mean(1)
        gold = chances[:, np.arange(len(right)), right].sum(1)
        return [rank_ffns(each[0] - each[1:]).tolist() for each in (accuracy, gold)]

    if rankings(plain) != rankings(found[: model.depth + 1]):
        raise SystemExit("rankings of FFNs differ")


if __name__ == "__main__":
    main()
