"""Estimates against numbers worked out by hand, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from repro import estimates, machines, planned, root_specs
from repro.config import Config, compose, compose_all
from repro.errors import UserError
from repro.estimates import check_fits, estimate, of_task, shortage, total
from repro.hardware import Hardware
from repro.tasks import tasks
from repro.training import places

GIB = 2**30
OPT = "kind: hf\npath: facebook/opt-66b\ndtype: float16\nattention: auto\nrevision: null\n"
RUN = "paper/induction_heads=formation"


@pytest.fixture
def opt(project: Path) -> Path:
    """A project in which model=opt is OPT-66B in 16 bits, and model=unknown nobody knows."""
    (project / "conf/model/opt.yaml").write_text(OPT)
    (project / "conf/analysis/copies.yaml").write_text("kind: copy_scores\n")  # no pass of it is modelled
    (project / "conf/model/unknown.yaml").write_text(OPT.replace("facebook/opt-66b", "nobody/nothing-7b"))
    return project


def with_model(project: Path, *overrides: str) -> Config:
    return compose(["paper/invented=first", "analysis=copies", "model=opt", *overrides], project)


def profile(config: Config) -> Hardware:
    return Hardware.parse(config.values["hardware"], "hardware")


def icl(tmp_path: Path, *overrides: str) -> Config:
    return compose([RUN, f"runs_dir={tmp_path}", "hardware=debug", *overrides])


def test_opt_66b_on_eight_a100(opt: Path) -> None:
    one = estimate(with_model(opt, "hardware=slurm_8xa100"))
    assert (one.parameters, one.weights_bytes) == (65_719_701_504, 131_439_403_008)
    # No pass of this analysis is modelled: weights, and 2 GiB a GPU.
    assert one.memory_bytes == 131_439_403_008 + 8 * 2 * GIB
    assert one.host_bytes == pytest.approx(3 * GIB + 10e9)  # a process, CUDA, and one file of weights
    assert one.gpu_hours == pytest.approx(8 * one.seconds / 3600)
    assert any("131.44 GB = 122.4 GiB in float16" in line for line in one.lines)


def test_opt_66b_fits_eight_a100_and_one_h200(opt: Path) -> None:
    for name in ("slurm_8xa100", "slurm_h200"):
        config = with_model(opt, f"hardware={name}")
        check_fits(config, profile(config))


def test_opt_66b_on_one_a100_is_refused_with_what_would_fit(opt: Path) -> None:
    config = with_model(opt, "hardware=slurm_a100")
    with pytest.raises(UserError) as refused:
        check_fits(config, profile(config))
    said = str(refused.value)
    assert "needs 124.4 GiB of GPU memory (122.4 GiB weights), the profile has 1 x 40 GiB" in said
    assert "hardware=slurm_8xa100" in said and "hardware=slurm_h200" in said
    assert "hardware=slurm_gpu" not in said and "hardware=slurm_cpu" not in said


def test_what_is_proposed_for_the_host_does_fit(opt: Path) -> None:
    config = with_model(opt, "hardware=slurm_a100")
    with pytest.raises(UserError) as refused:
        check_fits(config, profile(config))
    word = next(word for word in str(refused.value).split() if word.startswith("hardware.memory_gb="))
    offloaded = with_model(opt, "hardware=slurm_a100", "hardware.device_map=auto", word)
    check_fits(offloaded, profile(offloaded))
    less = float(word.split("=")[1]) - 1
    short = with_model(opt, "hardware=slurm_a100", "hardware.device_map=auto", f"hardware.memory_gb={less}")
    with pytest.raises(UserError, match="hardware.memory_gb has"):
        check_fits(short, profile(short))


def test_without_a_device_map_one_gpu_must_do(opt: Path) -> None:
    config = with_model(opt, "hardware=slurm_8xa100", "hardware.device_map=null")
    with pytest.raises(UserError, match="1 x 40 GiB"):
        check_fits(config, profile(config))


def test_twice_the_bytes_do_not_fit_and_half_of_them_are_proposed(opt: Path) -> None:
    config = with_model(opt, "hardware=slurm_h200", "model.dtype=float32")
    assert estimate(config).weights_bytes == 2 * 131_439_403_008
    with pytest.raises(UserError, match="model.dtype=bfloat16"):
        check_fits(config, profile(config))


def test_host_memory_below_the_estimate_is_refused(opt: Path) -> None:
    config = with_model(opt, "hardware=slurm_h200", "hardware.memory_gb=8")
    with pytest.raises(UserError, match=r"hardware.memory_gb has 8 GiB.*hardware.memory_gb=13"):
        check_fits(config, profile(config))
    on_cpu = with_model(opt, "hardware=slurm_cpu")
    with pytest.raises(UserError, match=r"needs about 123.4 GiB on the host.*hardware.memory_gb=124"):
        check_fits(on_cpu, profile(on_cpu))


def test_an_unknown_model_is_not_guessed(opt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(opt))
    config = compose(["paper/invented=first", "analysis=copies", "model=unknown", "hardware=slurm_gpu"], opt)
    one = estimate(config)
    assert one.parameters is None and one.memory_bytes is None and not one.known
    assert any("nobody/nothing-7b is neither a well-known name" in line for line in one.lines)
    check_fits(config, profile(config))


def test_one_training_by_hand(tmp_path: Path) -> None:
    """Two attention layers of width 64, 5 tokens, batch 32; the last layer's queries at the query only."""
    one = estimate(icl(tmp_path))
    first = 4 * 64 * 64 * 10 + 4 * 64 * 25  # four matrices at 5 positions; scores and sums of 5 x 5
    second = 4 * 64 * 64 * 6 + 4 * 64 * 5  # two at 5 positions, two at one; 1 x 5
    forward = first + second + 2 * 64 * 5  # five labels
    step = 3 * 32 * forward + 2 * (2 * 50 * 512 * 64)  # 50 exemplars are projected; nothing goes back to them
    assert sum(run[1] for run in one.trainings) == 31_250 * step + 201 * 4 * 1000 * forward
    scores = (one.flops - sum(run[1] for run in one.trainings)) / 0.22  # shared prefixes
    every = 2 * first + 2 * 64 * 5 * 5
    assert scores == pytest.approx(101 * 78_400 * every)
    assert one.parameters == 2 * (4 * 64 * 64 + 128) + 513 * 64 + 5 * 64 + 65 * 5 + 128


def test_the_main_run_takes_as_long_as_was_measured(tmp_path: Path) -> None:
    """39 s of training and 61 s in all on one core of the machine that papers/ gives times of."""
    one = estimate(icl(tmp_path))
    assert 61 / 2 < one.seconds < 61 * 2
    training = sum(run[2] for run in one.trainings)
    assert 39 / 2 < training < 39 * 2
    steps = 31_250 * 0.81e-3
    assert steps / 2 < training < steps * 2


def test_parameters_are_those_of_the_model(tmp_path: Path) -> None:
    import equinox as eqx
    import jax

    from repro.models.icl_init import init
    from repro.models.icl_shape import IclShape
    from repro.models.specs import IclTransformer

    for spec in (
        IclTransformer(),
        IclTransformer(depth=3, width=16, heads=2, mlp_ratio=2.5, positions="learned", outputs=7),
    ):
        built = init(spec, 20, spec.outputs or 5, 0)
        count = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(built, eqx.is_array)))
        assert IclShape(spec, 20, spec.outputs or 5).parameters == count


def test_a_training_in_the_store_costs_nothing(tmp_path: Path) -> None:
    config = icl(tmp_path)
    before = estimate(config)
    (plan,) = planned.plans(config, root_specs.parse(config.values)).values()
    place = places.folder(planned.store(config), plan)
    place.mkdir(parents=True)
    (place / places.HISTORY).touch()
    after = estimate(config)
    assert before.flops - after.flops == pytest.approx(before.trainings[0][1])
    assert any("in the store already" in line for line in after.lines)


def test_a_shared_training_counts_once_in_a_total(tmp_path: Path) -> None:
    one = estimate(icl(tmp_path))
    other = estimate(compose(["paper/induction_heads=head_roles", f"runs_dir={tmp_path}", "hardware=debug",
                              "training.checkpoint_every=1000"]))  # fmt: skip
    assert [run[0] for run in one.trainings] == [run[0] for run in other.trainings]
    both = total([one, other])
    assert both.flops == pytest.approx(one.flops + other.flops - one.trainings[0][1])
    assert both.seconds == pytest.approx(one.seconds + other.seconds - one.trainings[0][2])
    assert both.flops == pytest.approx(total([other, one]).flops) and both.jobs == 2
    apart = [replace(item, trainings=()) for item in (one, other)]
    assert total(apart).flops == pytest.approx(one.flops + other.flops)


def test_jobs_add_up_to_the_run_they_are_parts_of(tmp_path: Path) -> None:
    options = ["hardware=slurm_cpu", f"runs_dir={tmp_path}"]
    whole = estimate(compose([RUN, *options]))
    split = compose([RUN, *options, "shards=4"])
    jobs = tasks([split])
    assert [task.kind for task in jobs] == ["training", "shard", "shard", "shard", "shard", "run"]
    each = [of_task(task) for task in jobs]
    assert total(each).flops == pytest.approx(whole.flops)
    assert each[-1].flops == 0


def test_trainings_side_by_side_take_as_long_as_the_longest(tmp_path: Path) -> None:
    config = compose(["paper/induction_heads=clamps", "hardware=slurm_cpu", f"runs_dir={tmp_path}"])
    wide = Hardware.parse({**config.values["hardware"], "cpus": 6}, "hardware")
    narrow = Hardware.parse({**config.values["hardware"], "cpus": 1, "threads": 1}, "hardware")
    one, many = estimate(config, narrow), estimate(config, wide)
    assert one.flops == many.flops and len(one.trainings) == 6
    assert one.seconds - 10 == pytest.approx(6 * (many.seconds - 10))
    assert many.host_bytes > one.host_bytes


def test_small_models_are_no_faster_on_a_gpu(tmp_path: Path) -> None:
    config = icl(tmp_path, "hardware=slurm_h200")
    assert estimate(config).seconds == pytest.approx(estimate(icl(tmp_path)).seconds)
    assert estimate(config).gpu_hours > 0 == estimate(icl(tmp_path)).gpu_hours


def test_a_machine_that_cannot_hold_it_here(opt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = with_model(opt, "hardware=debug")
    monkeypatch.setattr(estimates.os, "sysconf", lambda name: 4096 if "SIZE" in name else 2**32)  # 16 TiB
    assert shortage(estimate(config), profile(config)) is None
    monkeypatch.setattr(estimates.os, "sysconf", lambda name: 4096 if "SIZE" in name else 2**22)  # 16 GiB
    assert "this machine has 16 GiB" in str(shortage(estimate(config), profile(config)))


@pytest.mark.parametrize(
    ("name", "known"),
    [("a100", 40), ("a100_80gb", 80), ("A100-SXM4-40GB", 40), ("h200", 139), ("rtx", None), (None, None)],
)
def test_types_of_gpu(name: str | None, known: float | None) -> None:
    found = machines.gpu_of(Hardware(executor="slurm", gpu_type=name))
    assert (found[1].memory_gb if found else None) == known


def test_seeds_of_a_sweep_are_told_apart(tmp_path: Path) -> None:
    configs = compose_all([RUN, "seed=0,1", f"runs_dir={tmp_path}", "hardware=debug"], True)
    both = total([estimate(config) for config in configs])
    assert both.flops == pytest.approx(2 * estimate(configs[0]).flops)
