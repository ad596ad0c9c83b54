"""Estimates against tokens and operations counted independently: OPT-66B, fourteen tasks, 16 bits."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from repro.analyses.importance_specs import FfnImportance, HeadImportance, Pruning
from repro.data.few_shot_specs import FewShotTasks, FewShotToy
from repro.data.scored_specs import TokenChoices
from repro.models.shapes import Shape

OPT_66B = Shape("opt", 64, 72, 72, 9216, 128, 36864, 50272, positions=2048)
GIB = 2**30


@pytest.mark.parametrize(
    ("shot", "tokens", "flops"), [(0, 2.8e6, 0.7e18), (1, 5.5e6, 1.4e18), (5, 16.6e6, 4.3e18)]
)
def test_importance_of_all_tasks(shot: int, tokens: float, flops: float) -> None:
    """Tokens of at most 2,500 examples a task, two forwards' worth of matrix products each."""
    cost = HeadImportance().cost(OPT_66B, FewShotTasks(shots=[shot]))
    assert cost.forward_tokens == pytest.approx(tokens, rel=0.06)
    assert cost.total_flops(OPT_66B) == pytest.approx(flops, rel=0.1)
    again = HeadImportance(recompute=True).cost(OPT_66B, FewShotTasks(shots=[shot]))
    assert again.total_flops(OPT_66B) == pytest.approx(1.5 * cost.total_flops(OPT_66B), rel=0.05)
    assert sum(one.examples for one in FewShotTasks().workload()) == 26769


@pytest.mark.parametrize(("shot", "flops"), [(0, 1.3e18), (1, 2.1e18), (5, 5.1e18)])
def test_one_evaluation_with_shared_contexts(shot: int, flops: float) -> None:
    cost = Pruning(head_percents=[0]).cost(OPT_66B, FewShotTasks(shots=[shot]))
    importance = HeadImportance().cost(OPT_66B, FewShotTasks(shots=[shot]))
    assert cost.total_flops(OPT_66B) - importance.total_flops(OPT_66B) == pytest.approx(flops, rel=0.15)


def test_every_ffn_alone_costs_half_a_pass_each() -> None:
    one = Pruning(head_percents=[0], ranking=["random"]).cost(OPT_66B, FewShotTasks()).total_flops(OPT_66B)
    every = FfnImportance().cost(OPT_66B, FewShotTasks()).total_flops(OPT_66B)
    assert every / one == pytest.approx(1 + 63 / 2, rel=0.05)  # 2,080 instead of 4,160 visits of layers


def test_memory_of_one_example_of_2048_tokens() -> None:
    """22.5 GiB of activations that are kept, about 3 GiB where they are computed again."""
    data = SimpleNamespace(
        kind="x", workload=lambda: [FewShotTasks(tasks=["multirc"], shots=[9]).workload()[0]]
    )
    needs = [
        OPT_66B.work_bytes(HeadImportance(recompute=again).cost(OPT_66B, data).works[0], "bfloat16", "sdpa")
        / GIB
        for again in (False, True)
    ]
    assert needs[0] == pytest.approx(22.5, rel=0.05) and needs[1] == pytest.approx(3, rel=0.15)


def test_files_of_the_user_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "choices.json"
    records = [{"context": [1, 2, 3], "choices": [[4, 5, 6], [7]], "gold": 0}] * 3
    path.write_text(json.dumps(records))
    (one,) = TokenChoices(path=str(path)).workload()
    assert (one.examples, one.example_tokens, one.questions, one.choices) == (3, 5, 3, 2)
    assert (one.context_tokens, one.choice_tokens) == (3, 2)
    cost = FfnImportance().cost(OPT_66B, TokenChoices(path=str(path)))
    assert cost.works[0].length == 5 and cost.works[0].sequences == pytest.approx(3 * (1 + 63 / 2))
    assert FewShotToy().workload()[0].examples == 50


def test_data_without_texts_is_not_modelled() -> None:
    assert not HeadImportance().cost(OPT_66B, SimpleNamespace(kind="none")).modelled
