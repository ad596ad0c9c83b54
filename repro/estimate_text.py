"""Estimates for people: what `dry_run=true` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from repro import estimates
from repro.config import Config
from repro.estimates import Estimate, total
from repro.hardware import Hardware, cpu_count
from repro.machines import GIB

if TYPE_CHECKING:
    from repro.tasks import Task

_PREFIXES = ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))


def text(one: Estimate) -> str:
    """One line of numbers."""
    memory = "unknown" if one.memory_bytes is None else f"{one.memory_bytes / GIB:.1f} GiB"
    least = "" if one.known else "at least "
    host = f" ({one.host_bytes / GIB:.1f} GiB on the host)" if one.memory_bytes != one.host_bytes else ""
    return (
        f"memory {memory}{host}, {least}{flops_text(one.flops)}, {least}{time_text(one.seconds)},"
        f" {one.gpu_hours:.2f} GPU-hours, {one.cpu_hours:.2f} core-hours"
    )


def dry_run(configs: Sequence[Config], hardware: Hardware) -> str:
    """What runs of one hardware profile would need: each, how it comes about, and all together."""
    each = [estimates.estimate(config, hardware) for config in configs]
    names = [f"{config.title} seed={config.values['seed']}" for config in configs]
    return _listed(names, each, [hardware] * len(configs))


def jobs(tasks: Sequence[Task]) -> str:
    """The same of jobs to be submitted: trainings, parts of analyses, and runs."""
    each = [estimates.of_task(task) for task in tasks]
    return _listed(
        [task.title for task in tasks], each, [task.hardware for task in tasks], [task.kind for task in tasks]
    )


def _listed(
    names: Sequence[str], each: Sequence[Estimate], where: Sequence[Hardware], stages: Sequence[str] = ()
) -> str:
    """stages: of each, those of one wait for all of the stage before."""
    lines, said = ["# estimate, from the config alone"], None
    for name, one, hardware in zip(names, each, where, strict=True):
        lines.append(f"# {name}: {text(one)}")
        if one.lines != said:  # repeats of an experiment come about alike
            lines += [f"#   {line}" for line in one.lines]
        said = one.lines
        problem = estimates.shortage(one, hardware)
        if problem is not None:
            lines.append(f"#   DOES NOT FIT: {problem}")
        if hardware.executor == "slurm" and one.seconds > 60 * hardware.timeout_min:
            lines.append(
                f"#   longer than the time limit of {time_text(60 * hardware.timeout_min)}: it would go on in"
                f" up to {hardware.max_requeues} requeued jobs"
            )
    return "\n".join([*lines, f"# {_together(each, where, stages)}"])


def refuse(configs: Sequence[Config], hardware: Hardware) -> None:
    """Raise `UserError`, with what would fit, for the first run that does not, before any is started."""
    for config in configs:
        estimates.check_fits(config, hardware)


def _together(each: Sequence[Estimate], where: Sequence[Hardware], stages: Sequence[str]) -> str:
    if not each:
        return "total: nothing to do"
    whole = total(each)
    at_once = min(max(_at_once(hardware) for hardware in where), len(each))
    elapsed = 0.0
    for stage in dict.fromkeys(stages) or [""]:
        part = [one for one, its in zip(each, stages or [""] * len(each), strict=True) if its == stage]
        elapsed += max(max(one.seconds for one in part), total(part).seconds / at_once)
    count = f"{whole.jobs} job{'s' if whole.jobs > 1 else ''}"
    array = (
        f", at most {at_once} at a time: about {time_text(elapsed)} without queueing" if len(each) > 1 else ""
    )
    return f"total: {count}{array}; {text(whole)}"


def _at_once(hardware: Hardware) -> int:
    if hardware.executor == "slurm":
        return hardware.nodes if hardware.nodes > 1 else hardware.array_parallelism
    if hardware.executor == "processes":
        return hardware.workers or max(1, cpu_count() // (hardware.threads or 1))
    return 1


def flops_text(flops: float) -> str:
    """With a prefix: 1.3 TFLOP."""
    for size, prefix in _PREFIXES:
        if flops >= size:
            return f"{flops / size:.3g} {prefix}FLOP"
    return f"{flops:.0f} FLOP"


def time_text(seconds: float) -> str:
    """In the largest unit that gives at least two of it."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
