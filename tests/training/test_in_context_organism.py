"""The small OPT that learns from demonstrations has induction heads, and cannot do without them.

Both are measured from the library's own attention and with hooks of its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from repro.data import token_sequences
from repro.data.lm_tasks import Scored, build
from repro.data.token_sequence_specs import InductionSequences
from repro.models.language_model import LanguageModel
from repro.models.specs import Organism
from repro.training import lm_evaluation, lm_store

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


def accuracy(model: LanguageModel, probe: Scored, without: Sequence[Head]) -> float:
    """Of a probe's answers among all words, with some heads' outputs put to 0."""
    handles = []
    for layer, head in without:
        columns = slice(head * model.head_width, (head + 1) * model.head_width)

        def cut(module: Any, args: Any, columns: slice = columns) -> Any:
            kept = args[0].clone()
            kept[..., columns] = 0
            return (kept, *args[1:])

        out = model.hf.model.decoder.layers[layer].self_attn.out_proj
        handles.append(out.register_forward_pre_hook(cut))
    found = lm_evaluation.measure(model.hf, probe)["accuracy"]
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.slow
def test_it_has_induction_heads_and_needs_them(tmp_path: Path) -> None:
    """Without its induction heads labels are no longer read from demonstrations; memory stays.

    They are all heads of the second layer, and the first has the previous-token heads that they need, so
    the control is not another set of as many: it is any single head, and what needs no demonstrations.
    """
    spec = Organism.parse(yaml.safe_load(FILE.read_text()), "model")
    model = lm_store.load(spec, {"device": "cpu"}, tmp_path)
    facts = json.loads((lm_store.ensure(spec, tmp_path) / lm_store.FACTS).read_text())
    assert spec.architecture == "opt" and facts["cpu_seconds"] < 120

    scores = prefix_matching(model)
    induction = [(layer, head) for layer, head in np.argwhere(scores > scores.max() / 2).tolist()]
    assert scores.max() > 0.8 and {layer for layer, _ in induction} == {1} and scores[0].max() < 0.2, scores

    probes = build(spec.task).probes()
    memory = accuracy(model, probes["knowledge"], induction)
    for name in ("repeats", "pairs", "labels"):
        whole, without = (accuracy(model, probes[name], some) for some in ([], induction))
        assert whole > 0.9 and without < 0.2, (name, whole, without)
        assert memory > 2 * without, (name, memory, without)
    every = [(layer, head) for layer in range(model.depth) for head in range(model.heads)]
    alone = [accuracy(model, probes["labels"], [head]) for head in every]
    assert np.median(alone) > 0.9, "most single heads can be spared"
