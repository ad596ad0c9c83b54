"""What a run will need, from its config alone: memory, operations, time and GPU hours; and whether it fits.

Nothing is loaded. Sizes and operations are counted; times divide them by a machine's peak and an efficiency
that the lines name, and are rough: within a factor of two or three.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from repro.config import Config
from repro.errors import UserError
from repro.hardware import Hardware, cpu_count
from repro.job_costs import (
    START_SECONDS,
    Load,
    TrainingRun,
    load_of,
    memory_bytes,
    rate,
    reading_seconds,
    spilled_bytes,
    streaming_seconds,
    training_load,
)
from repro.machines import DISK, GIB, RUNTIME_GB, Machine, machine
from repro.run_directory import RunDirectory

if TYPE_CHECKING:
    from repro.tasks import Task


@dataclass(frozen=True)
class Estimate:
    """Of one job, or of several together (`total`).

    parameters, weights_bytes: of the largest model; None if there is none or its sizes are unknown.
    memory_bytes: the peak where the model lies, on all GPUs of the job or on the host; None if unknown.
    host_bytes: the peak on the host. flops: operations. seconds: of the job, and of all jobs one after the
    other for a total. gpu_hours, cpu_hours: GPUs and cores that are reserved, times that.
    known: False if something is not modelled, so that the rest is a lower bound.
    trainings: by digest, with operations and seconds, so that a total counts shared ones once.
    lines: for people, how each term comes about.
    """

    title: str
    parameters: int | None
    weights_bytes: float | None
    memory_bytes: float | None
    host_bytes: float
    flops: float
    seconds: float
    gpu_hours: float
    cpu_hours: float
    known: bool = True
    trainings: tuple[tuple[str, float, float], ...] = ()
    lines: tuple[str, ...] = ()
    jobs: int = 1


def estimate(
    config: Config,
    hardware: Hardware | None = None,
    elsewhere: Collection[str] = (),
    analysed_elsewhere: bool = False,
) -> Estimate:
    """What a run needs on a hardware profile, the config's own if none is given.

    A part of a run (`config.part`) has its share of the analysis. elsewhere: digests of trainings that other
    jobs do. analysed_elsewhere: the parts of its analysis are other jobs, too. Raises `UserError` for configs
    that no run could have.
    """
    hardware = hardware or Hardware.parse(config.values["hardware"], "hardware")
    if config.part is None and not config.values["rerun"] and RunDirectory(config.directory).is_done():
        nothing = ("finished already: nothing to do",)
        return Estimate(config.title, None, None, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, lines=nothing)
    load = load_of(config, training_workers(hardware), elsewhere)
    at = machine(hardware, cores_of(hardware), load.dtype)
    share = 0.0 if analysed_elsewhere else 1 / config.part[1] if config.part else 1.0
    analysis = load.cost.total_flops(load.shape) if load.shape else load.cost.flops
    speed = 1e12 * rate(load, at)
    passes = max(analysis / speed, streaming_seconds(load, hardware, at))
    trainings = [(run.digest, run.flops, run.flops / speed) for run in load.trainings]
    seconds = START_SECONDS + reading_seconds(load) + share * passes
    seconds += _side_by_side(load.trainings, speed, hardware)
    memory, host = memory_bytes(load, hardware, at)
    return Estimate(
        config.title,
        load.shape.parameters if load.shape else None,
        load.shape.weights_bytes(load.dtype) if load.shape else None,
        memory,
        host,
        sum(run.flops for run in load.trainings) + share * analysis,
        seconds,
        at.gpus * seconds / 3600,
        at.cores * seconds / 3600,
        load.known and load.cost.modelled,
        tuple(trainings),
        _lines(load, hardware, at, analysis, share),
    )


def of_task(task: Task) -> Estimate:
    """What one piece of work needs that is a job of its own: a training, a part of an analysis, or a run."""
    hardware = task.hardware
    if task.plan is None:
        split = any(need.parent.name == "shards" for need in task.needs)
        elsewhere = {need.name for need in task.needs}
        return replace(estimate(task.config, hardware, elsewhere, split), title=task.title)
    load = training_load(task.plan)
    at = machine(hardware, cores_of(hardware))
    seconds = START_SECONDS + sum(run.flops for run in load.trainings) / (1e12 * rate(load, at))
    return Estimate(
        task.title, load.shape.parameters if load.shape else None,
        load.shape.weights_bytes(load.dtype) if load.shape else None,
        load.host_bytes, load.host_bytes, sum(run.flops for run in load.trainings), seconds,
        at.gpus * seconds / 3600, at.cores * seconds / 3600, load.known,
        lines=_lines(load, hardware, at, 0.0, 1.0),
    )  # fmt: skip


def total(estimates: Sequence[Estimate]) -> Estimate:
    """All jobs together: sums, the largest memory, and each training that several need once."""
    if not estimates:
        raise ValueError("total: no estimates")
    seen: set[str] = set()
    flops = seconds = gpu = cpu = 0.0
    for one in estimates:
        again = [run for run in one.trainings if run[0] in seen]
        seen |= {run[0] for run in one.trainings}
        saved = min(sum(run[2] for run in again), one.seconds)
        kept = 1 - saved / one.seconds if one.seconds else 1.0
        flops += one.flops - sum(run[1] for run in again)
        seconds, gpu, cpu = (
            seconds + kept * one.seconds,
            gpu + kept * one.gpu_hours,
            cpu + kept * one.cpu_hours,
        )
    known = [one.memory_bytes for one in estimates if one.memory_bytes is not None]
    largest = max(estimates, key=lambda one: one.parameters or 0)
    return replace(
        largest, title=f"total of {len(estimates)}", memory_bytes=max(known, default=None),
        host_bytes=max(one.host_bytes for one in estimates), flops=flops, seconds=seconds, gpu_hours=gpu,
        cpu_hours=cpu, known=all(one.known for one in estimates), lines=(), trainings=(),
        jobs=sum(one.jobs for one in estimates),
    )  # fmt: skip


def check_fits(config: Config, hardware: Hardware) -> None:
    """Raise `UserError`, with what would fit, if a run needs more memory than its profile has.

    A config that is wrong otherwise is left to the run itself: one of several does not stop the others.
    """
    try:
        need = estimate(config, hardware)
    except UserError:
        return
    problem = shortage(need, hardware)
    if problem is not None:
        from repro.fitting import hints

        raise UserError(f"{config.title}: {problem}. {hints(config, hardware, need)}")


def check_tasks_fit(tasks: Sequence[Task]) -> None:
    """The same of jobs to be submitted, each a training, a part of an analysis, or a run."""
    for task in tasks:
        try:
            need = of_task(task)
        except UserError:
            continue
        problem = shortage(need, task.hardware)
        if problem is not None:
            from repro.fitting import hints

            raise UserError(f"{task.title}: {problem}. {hints(task.config, task.hardware, need)}")


def shortage(need: Estimate, hardware: Hardware) -> str | None:
    """What there is too little of on a profile, in words; None if the run fits as far as is known."""
    at = machine(hardware, cores_of(hardware))
    if at.on_gpu and at.memory_gb is not None and need.memory_bytes is not None and need.weights_bytes:
        used = at.gpus if hardware.device_map else 1
        # With a device map, what is too much for the GPUs lies on the host, and counts there.
        if need.memory_bytes > used * at.memory_gb * GIB and not _spreads(hardware):
            needed, weights = need.memory_bytes / GIB, need.weights_bytes / GIB
            return (
                f"the model needs {needed:.1f} GiB of GPU memory ({weights:.1f} GiB weights), the profile has"
                f" {used} x {at.memory_gb:g} GiB"
            )
    limit, where = hardware.memory_gb, "hardware.memory_gb"
    if limit is None and hardware.executor != "slurm":
        if hardware.device == "auto" and Path("/dev/nvidiactl").exists():
            return None  # the model goes to a GPU of which nothing is known
        limit, where = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB, "this machine"
    if limit is not None and need.host_bytes > limit * GIB:
        needed = f"{need.host_bytes / GIB:.1f}"
        return f"{where} has {limit:.4g} GiB, and the run needs about {needed} GiB on the host"
    return None


def _spreads(hardware: Hardware) -> bool:
    """Whether what does not fit the GPUs may lie in host memory."""
    return hardware.device_map is not None and hardware.memory_gb is not None


def cores_of(hardware: Hardware) -> int:
    """CPU cores of one job."""
    if hardware.threads or hardware.executor == "slurm":
        return hardware.threads or hardware.cpus
    return cpu_count()


def training_workers(hardware: Hardware) -> int:
    """Trainings that run side by side in one job, beside the process that waits for them; 0: in it."""
    return 0 if hardware.device == "cuda" or hardware.threads == 1 else cores_of(hardware)


def _side_by_side(trainings: Sequence[TrainingRun], speed: float, hardware: Hardware) -> float:
    """Seconds of all trainings: as long as the longest, or as their sum shared out."""
    times = [run.flops / speed for run in trainings]
    return max(max(times, default=0), sum(times) / max(1, training_workers(hardware)))


def _lines(load: Load, hardware: Hardware, at: Machine, analysis: float, share: float) -> tuple[str, ...]:
    from repro.estimate_text import flops_text

    lines = [*load.lines, *(run.says for run in load.trainings)]
    works = ", ".join(work.says for work in load.cost.works)
    if analysis or works:
        lines.append(f"analysis: {flops_text(analysis)}" + (f" ({works})" if works else ""))
    lines += [f"analysis: {line}" for line in load.cost.lines]
    if share < 1:
        lines.append(f"analysis: 1/{round(1 / share)} of it here" if share else "analysis: in other jobs")
    if at.on_gpu and not load.small and load.shape:
        lines.append(
            f"GPU memory: {RUNTIME_GB:g} GiB beside weights and activations, for libraries, on each GPU"
        )
    outside = spilled_bytes(load, hardware, at)
    if outside:
        lines.append(
            f"{outside / GIB:.1f} GiB of weights stay on the host and come over the bus at each pass"
        )
    speed = at.says
    if load.small:
        speed = machine(Hardware(executor="inline", threads=1), 1).says
        if at.on_gpu:
            speed += ", also on a GPU: so small a model waits for its kernels to start"
    start = f"{START_SECONDS:g} s to start"
    if reading_seconds(load):
        start += f", and {reading_seconds(load):.0f} s to read the weights at {DISK / 1e9:g} GB/s"
    lines.append(f"time: {speed}, {start}; rough, within a factor of 2 or 3")
    if hardware.device == "auto":
        lines.append("device auto: estimated for the CPU")
    return tuple(lines)
