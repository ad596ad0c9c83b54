"""The small OPT that learns from demonstrations has induction heads, and cannot do without them.

Both are measured from the library's own attention and with hooks of its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from repro.data import few_shot_toy, token_sequences
from repro.data.few_shot_specs import FewShotToy
from repro.data.scored_texts import TaskSet
from repro.data.token_sequence_specs import InductionSequences
from repro.models.language_model import LanguageModel
from repro.models.specs import Organism
from repro.training import lm_store

FILE = Path(lm_store.__file__).parents[2] / "conf" / "model" / "in_context_organism.yaml"
Head = tuple[int, int]


def prefix_matching(model: LanguageModel) -> np.ndarray:
    """[layer, head]: attention of tokens of the second copy to what followed the same token in the first."""
    found = []
    spec = InductionSequences(count=6, first=6, step=1, repeats=2)
    for one in token_sequences.load(spec).repeated(model):
        with torch.no_grad():
            patterns = model.hf(torch.tensor([one.tokens]), output_attentions=True).attentions
        queries = np.arange(one.start + one.block, one.start + 2 * one.block - 1)
        found.append([p[0][:, queries, queries - one.block + 1].mean(-1).numpy() for p in patterns])
    return np.mean(found, axis=0)


def accuracy(model: LanguageModel, sets: Sequence[TaskSet], without: Sequence[Head]) -> list[float]:
    """Of each task, by the likeliest of the choices (words, one token each), with some heads' outputs 0."""
    handles = []
    for layer, head in without:
        columns = slice(head * model.head_width, (head + 1) * model.head_width)

        def cut(module: Any, args: Any, columns: slice = columns) -> Any:
            kept = args[0].clone()
            kept[..., columns] = 0
            return (kept, *args[1:])

        out = model.hf.model.decoder.layers[layer].self_attn.out_proj
        handles.append(out.register_forward_pre_hook(cut))
    found = []
    with torch.no_grad():
        for one in sets:
            right = 0
            for question in one.questions:
                logits = model.hf(torch.tensor([question.contexts[0]])).logits[0, -1]
                right += int(np.argmax([float(logits[ids[0]]) for ids in question.choices])) in question.right
            found.append(right / len(one.questions))
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.slow
def test_it_has_induction_heads_and_needs_them(tmp_path: Path) -> None:
    spec = Organism.parse(yaml.safe_load(FILE.read_text()), "model")
    model = lm_store.load(spec, {"device": "cpu"}, tmp_path)
    facts = json.loads((lm_store.ensure(spec, tmp_path) / lm_store.FACTS).read_text())
    assert spec.architecture == "opt" and facts["cpu_seconds"] < 120

    scores = prefix_matching(model)
    induction = [(layer, head) for layer, head in np.argwhere(scores > scores.max() / 2).tolist()]
    assert scores.max() > 0.5 and {layer for layer, _ in induction} == {1}, scores

    data = FewShotToy(tasks=["two_labels", "three_labels", "knowledge"], shots=[5], questions=60)
    *labels, knowledge = few_shot_toy.load(data).task_sets(model)
    whole, without = accuracy(model, labels, []), accuracy(model, labels, induction)
    lost = np.mean(whole) - np.mean(without)
    assert np.mean(whole) > 0.8 and lost > 0.2, (whole, without)
    assert accuracy(model, [knowledge], induction)[0] > 0.9, "what is known by heart needs no demonstrations"
    # As many of the other heads, in every combination.
    others = [(0, head) for head in range(model.heads)]
    random = [accuracy(model, labels, some) for some in combinations(others, len(induction))]
    assert np.mean(whole) - np.mean(random) < lost / 2, (whole, random)
