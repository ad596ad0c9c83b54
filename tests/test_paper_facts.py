"""What the papers' experiments must train, against tables copied from the papers and their released scripts.

Induction heads: appendix and released scripts of arXiv:2404.07129. Times are sequences seen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from repro import config
from repro.data.specs import Data
from repro.root_specs import condition_values
from repro.training.plans import Plan, plans

STORE = Path("trained")
MAIN_TEXT = ["formation", "individual_heads", "clamps", "scaling"]
APPENDIX = ["grafts", "previous_token_heads", "induction_strength_clamp", "pairs"]
BUT_3 = ["1:0", "1:1", "1:2", "1:4", "1:5", "1:6", "1:7"]
ONLY_3 = {"kind": "ablate_heads", "heads": BUT_3}
MATCH = {"kind": "induction_heads", "heads": ["1:3"], "strength": 1.0}
COPY = {"kind": "perfect_copy", "head": "1:3"}
LAYER_1 = {"kind": "perfect_previous_token_input"}
MILLION = 1_000_000


def previous_token(*heads: str) -> dict[str, Any]:
    return {"kind": "previous_token_heads", "heads": list(heads), "strength": 1.0, "only_label": False}


def planned(experiment: str, *overrides: str) -> dict[str, Plan]:
    """The training runs of an experiment of the paper, by condition."""
    values = config.compose([f"paper/induction_heads={experiment}", *overrides]).values
    named = values["conditions"] or {"": {}}
    whole = {name: condition_values(values, condition) for name, condition in named.items()}
    return plans(whole, Data.choose(values["data"], "data"), STORE)


@pytest.fixture(scope="module")
def runs() -> dict[str, dict[str, Plan]]:
    """experiment -> condition -> training run."""
    return {name: planned(name) for name in [*MAIN_TEXT, *APPENDIX, "pooled_heads", "progress_measures"]}


def distinct(runs: dict[str, dict[str, Plan]], experiments: list[str]) -> dict[str, Plan]:
    return {plan.digest(): plan for name in experiments for plan in runs[name].values()}


def manipulations(plan: Plan) -> list[dict[str, Any]]:
    plain = [item.model_dump(mode="json") for item in plan.manipulations]
    return sorted(plain, key=lambda item: item["kind"])


def settings(plan: Plan) -> dict[str, Any]:
    """What the runs of the paper differ in."""
    return {
        "sequences": plan.training.sequences,
        "evaluate_every": plan.training.evaluate_every,
        "checkpoint_every": plan.training.checkpoint_every,
        "init": plan.seed["init"],
        "class_split": plan.sequences.class_split,
        "labels": plan.sequences.labels,
        "label_pair_split": plan.sequences.label_pair_split,
        "manipulations": manipulations(plan),
    }


def expected(sequences: int, evaluate_every: int, *items: dict[str, Any], **changes: Any) -> dict[str, Any]:
    base = {
        "checkpoint_every": None,
        "init": 5,
        "class_split": (50, "rest", 100),
        "labels": 5,
        "label_pair_split": (8.0, 2.0, 0.0),
    }
    ordered = sorted(items, key=lambda item: item["kind"])
    said = {"sequences": sequences, "evaluate_every": evaluate_every, "manipulations": ordered}
    return {**base, **said, **changes}


NO_CLAMP = expected(600_000, 1000, ONLY_3, checkpoint_every=1000)
CLAMPS = {
    "none": NO_CLAMP,
    "prev_token": expected(600_000, 1000, ONLY_3, previous_token("0:2")),
    "layer1": expected(600_000, 1000, ONLY_3, LAYER_1),
    "match": expected(600_000, 1000, ONLY_3, MATCH),
    "copy": expected(600_000, 1000, COPY),
    "layer1_copy": expected(600_000, 1000, LAYER_1, COPY),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "_classes_100": {"class_split": (100, "rest", 100)},
    "_classes_200": {"class_split": (200, "rest", 100)},
    "_labels_10": {"labels": 10, "label_pair_split": (36.0, 9.0, 0.0)},
    "_labels_15": {"labels": 15, "label_pair_split": (84.0, 21.0, 0.0)},
}
STRENGTHS = [100, 95, 90, 85, 80, 75, 70, 65, 60, 55, 50, 40, 30, 20, 10, 0]


def test_base_settings(runs: dict[str, dict[str, Plan]]) -> None:
    (plan,) = runs["formation"].values()
    model, training, sequences = plan.model, plan.training, plan.sequences
    assert (model.depth, model.heads, model.width, model.mlp_ratio) == (2, 8, 64, None)
    assert (model.positions, model.position_base, model.init_rescale) == ("rope", 10_000, 1)
    assert (training.batch, training.learning_rate, training.schedule) == (32, 1e-5, "constant")
    assert training.weight_decay == 0
    assert (sequences.context, sequences.exemplar_split) == (2, (1, "rest", 0))
    assert (sequences.label_pair_seed, sequences.evaluation_sequences) == (20, 1000)
    assert plan.seed == {"init": 5, "train": 0, "eval": 1}
    evaluators = [(name, one.classes, one.exemplars, one.relabel) for name, one in sequences.evaluate.items()]
    assert evaluators == [
        ("fsl_train", "train", "train", "train"),
        ("fsl_val_rl", "train", "train", "val"),
        ("fsl_train_valex", "train", "val", "train"),
        ("fsl_test_class", "test", "train", "train"),
    ]
    assert {one.burstiness for one in sequences.evaluate.values()} == {1}
    assert settings(plan) == expected(MILLION, 5000, checkpoint_every=1000)


def test_main_text_is_32_runs_of_26_2_million_sequences(runs: dict[str, dict[str, Plan]]) -> None:
    trained = distinct(runs, MAIN_TEXT)
    assert len(trained) == 32
    assert sum(plan.training.sequences for plan in trained.values()) == 26_200_000


def test_appendix_adds_31_runs_of_23_4_million_sequences(runs: dict[str, dict[str, Plan]]) -> None:
    main = distinct(runs, MAIN_TEXT)
    added = {digest: plan for digest, plan in distinct(runs, APPENDIX).items() if digest not in main}
    assert len(added) == 31
    assert sum(plan.training.sequences for plan in added.values()) == 23_400_000


def test_heads_alone(runs: dict[str, dict[str, Plan]]) -> None:
    alone = runs["individual_heads"]
    assert alone["all_heads"].digest() == runs["formation"][""].digest()
    for head in range(8):
        rest = [f"1:{other}" for other in range(8) if other != head]
        only = {"kind": "ablate_heads", "heads": rest}
        assert settings(alone[f"head_{head}"]) == expected(MILLION, 5000, only)
    assert len(alone) == 9


@pytest.mark.parametrize("name", CLAMPS)
def test_clamps(runs: dict[str, dict[str, Plan]], name: str) -> None:
    assert list(runs["clamps"]) == list(CLAMPS)
    assert settings(runs["clamps"][name]) == CLAMPS[name]


@pytest.mark.parametrize("variant", VARIANTS)
def test_scaling(runs: dict[str, dict[str, Plan]], variant: str) -> None:
    data, scaling = VARIANTS[variant], runs["scaling"]
    assert settings(scaling[f"normal{variant}"]) == expected(2 * MILLION, 5000, ONLY_3, **data)
    assert settings(scaling[f"b{variant}"]) == expected(300_000, 1000, LAYER_1, COPY, **data)
    assert settings(scaling[f"c{variant}"]) == expected(300_000, 1000, ONLY_3, MATCH, **data)
    assert settings(scaling[f"bc{variant}"]) == expected(300_000, 1000, ONLY_3, LAYER_1, **data)
    assert len(scaling) == 4 * (1 + len(VARIANTS))


def test_scaling_from_the_runs_of_clamps(runs: dict[str, dict[str, Plan]]) -> None:
    scaling, clamps = runs["scaling"], runs["clamps"]
    assert settings(scaling["normal"]) == expected(2 * MILLION, 5000, ONLY_3)
    shared = {"b": "layer1_copy", "c": "match", "bc": "layer1"}
    assert {name: scaling[name].digest() for name in shared} == {
        name: clamps[other].digest() for name, other in shared.items()
    }


def test_grafts(runs: dict[str, dict[str, Plan]]) -> None:
    grafts = runs["grafts"]
    assert grafts["source_5"].digest() == runs["formation"][""].digest()
    for seed in (6, 7):
        assert settings(grafts[f"source_{seed}"]) == expected(MILLION, 5000, init=seed)
    for seed in (5, 6, 7):
        graft, source = grafts[f"graft_{seed}"], grafts[f"source_{seed}"]
        folder = str(STORE / source.digest())
        taken = {"kind": "graft_in", "run": folder, "checkpoint": "last", "till_layer": 0}
        assert settings(graft) == expected(800_000, 1000, taken)
        assert graft.needs == (f"source_{seed}",)
    assert len(grafts) == 6


def test_previous_token_heads(runs: dict[str, dict[str, Plan]]) -> None:
    heads, clamps = runs["previous_token_heads"], runs["clamps"]
    assert heads["none"].digest() == clamps["none"].digest()
    assert heads["head_2"].digest() == clamps["prev_token"].digest()
    clamped = {
        "head_6": ["0:6"],
        "heads_1_2_5": ["0:1", "0:2", "0:5"],
        "all_heads": [f"0:{head}" for head in range(8)],
    }
    for name, which in clamped.items():
        assert settings(heads[name]) == expected(800_000, 5000, ONLY_3, previous_token(*which))
    assert len(heads) == 5


def test_clamped_strengths(runs: dict[str, dict[str, Plan]]) -> None:
    clamped = runs["induction_strength_clamp"]
    assert list(clamped) == [f"s{strength:03d}" for strength in STRENGTHS]
    for strength in STRENGTHS:
        held = {**MATCH, "strength": strength / 100}
        assert settings(clamped[f"s{strength:03d}"]) == expected(600_000, 5000, held)


def test_pairs(runs: dict[str, dict[str, Plan]]) -> None:
    pairs, alone = runs["pairs"], runs["individual_heads"]
    assert pairs["all_heads"].digest() == alone["all_heads"].digest()
    assert pairs["head_3"].digest() == alone["head_3"].digest()
    for other in (0, 1, 2, 4, 5, 6, 7):
        rest = [head for head in BUT_3 if head != f"1:{other}"]
        only = {"kind": "ablate_heads", "heads": rest}
        assert settings(pairs[f"with_{other}"]) == expected(MILLION, 5000, only)
    assert len(pairs) == 9


def test_pooled_heads_are_the_main_script_at_five_seeds(runs: dict[str, dict[str, Plan]]) -> None:
    pooled = runs["pooled_heads"]
    assert len(distinct(runs, ["pooled_heads"])) == len(pooled) == 45
    for condition, main in (("seed_5", "all_heads"), *((f"seed_5_head_{i}", f"head_{i}") for i in range(8))):
        assert pooled[condition].digest() == runs["individual_heads"][main].digest()
    for seed in (6, 7):
        assert pooled[f"seed_{seed}"].digest() == runs["grafts"][f"source_{seed}"].digest()
    for seed in range(5, 10):
        for head in range(8):
            one = settings(pooled[f"seed_{seed}_head_{head}"])
            assert one == {**settings(runs["individual_heads"][f"head_{head}"]), "init": seed}


def test_progress_measures_look_into_the_run_without_a_clamp(runs: dict[str, dict[str, Plan]]) -> None:
    (plan,) = runs["progress_measures"].values()
    assert plan.digest() == runs["clamps"]["none"].digest()


@pytest.mark.parametrize(
    "experiment",
    ["head_roles", "wiring", "layer_contributions", "circuit_table", "copy_specificity", "inspect"],
)
def test_analyses_of_the_main_run_share_it(runs: dict[str, dict[str, Plan]], experiment: str) -> None:
    (plan,) = planned(experiment).values()
    assert plan.digest() == runs["formation"][""].digest()


def test_seed_shifts_the_initialisation() -> None:
    seeds = [planned("formation", f"seed={k}")[""].seed for k in range(5)]
    assert [seed["init"] for seed in seeds] == [5, 6, 7, 8, 9]
    assert {(seed["train"], seed["eval"]) for seed in seeds} == {(0, 1)}
