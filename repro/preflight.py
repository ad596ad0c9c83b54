"""What is refused before anything is submitted: SLURM would take it, and it would fail late or never run."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from repro import slurm
from repro.config import CONFIG_JSON, load
from repro.errors import UserError
from repro.hardware import Hardware, site_path
from repro.run_directory import RunDirectory
from repro.slurm import Partition
from repro.tasks import Task

# Folders that every machine has for itself.
_OWN = ("/tmp", "/var/tmp", "/dev/shm", "/run")
_IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")
# What may differ between a run in the queue and the same run asked for again.
_MAY_DIFFER = ("wait", "dry_run", "verbose", "tracking.tags")


def check(wanted: Sequence[Task]) -> None:
    """Raises `UserError` if SLURM is not here, or has nothing that fits a profile of these tasks."""
    slurm.require()
    try:
        there = slurm.partitions()
    except slurm.NoAnswer as error:
        raise UserError(
            f"hardware: SLURM does not answer ({error}). Is its controller up, and SLURM_CONF right? Nothing"
            " was submitted"
        ) from None
    profiles = {task.hardware.model_dump_json(): task for task in wanted}
    for task in profiles.values():
        fits(task.hardware, there)
    for task in {task.config.values["runs_dir"]: task for task in wanted}.values():
        visible(Path(task.config.values["runs_dir"]), task.hardware, there)


def fits(hardware: Hardware, there: Sequence[Partition]) -> None:
    """Raises `UserError` if no node of the profile's partition has what it asks for."""
    nodes = chosen(hardware, there)
    name = nodes[0].name
    where = f"partition {name}"
    limits = [node.minutes for node in nodes if node.minutes is not None]
    if limits and hardware.timeout_min > max(limits):
        raise UserError(
            f"hardware.timeout_min: {hardware.timeout_min} minutes asked for, {where} allows {max(limits)}."
            f" Give hardware.timeout_min={max(limits)} or less: a job that reaches its limit goes on by"
            f" itself, up to hardware.max_requeues={hardware.max_requeues} times"
        )
    most = {"cpus": max(node.cpus for node in nodes), "memory": max(node.memory for node in nodes) / 1024}
    if hardware.cpus > most["cpus"]:
        raise UserError(
            f"hardware.cpus: {hardware.cpus} asked for, and no node of {where} has more than {most['cpus']}"
        )
    if hardware.memory_gb is not None and hardware.memory_gb > most["memory"]:
        raise UserError(
            f"hardware.memory_gb: {hardware.memory_gb:g} GB asked for, and no node of {where} has more than"
            f" {most['memory']:.4g} GB. Give hardware.memory_gb=… or another hardware.partition"
        )
    count = len({one for node in nodes for one in node.nodes})
    if hardware.nodes > count:
        raise UserError(f"hardware.nodes: {hardware.nodes} asked for, and {where} has {count}")
    _check_gres(hardware, nodes, there)


def chosen(hardware: Hardware, there: Sequence[Partition]) -> list[Partition]:
    """The nodes of the profile's partition. Raises `UserError` naming the partitions there are."""
    names = list(dict.fromkeys(one.name for one in there))
    asked = (
        hardware.partition.split(",")
        if hardware.partition
        else [one.name for one in there if one.default][:1]
    )
    if not asked:
        raise UserError(
            f"hardware.partition: none given, and this cluster has no default. Valid: {', '.join(names)}."
            f" Give hardware.partition=NAME, or put `partition: NAME` into {site_path()}"
        )
    for name in asked:
        if name not in names:
            raise UserError(
                f"hardware.partition: {name!r} does not exist on this cluster. Valid: {', '.join(names)}."
                f" Give hardware.partition=NAME, or put `partition: NAME` into {site_path()}"
            )
    return [one for one in there if one.name in asked]


def _check_gres(hardware: Hardware, nodes: Sequence[Partition], there: Sequence[Partition]) -> None:
    for wanted in filter(None, (hardware.generic_resources or "").split(",")):
        if any(_offers(node.gres, wanted) for node in nodes):
            continue
        had = sorted({f"{one.name}: {one.gres}" for one in there if "null" not in one.gres})
        raise UserError(
            f"hardware.gres: no node of partition {nodes[0].name} has {wanted}. There is"
            f" {'; '.join(had) or 'none on this cluster'}. Give hardware.partition=, hardware.gpu_type= or"
            " hardware.gres="
        )


def _offers(gres: str, wanted: str) -> bool:
    """Whether a node with resources such as "gpu:a100:4(S:0-1),tmp:10G" has "gpu:2" or "gpu:a100:2"."""
    name, kind, count = _resource(wanted)
    had = [_resource(part) for part in gres.split(",") if part]
    return sum(have for other, its, have in had if other == name and kind in (None, its)) >= count


def _resource(text: str) -> tuple[str, str | None, float]:
    name, *rest = text.split("(")[0].split(":")
    count = _count(rest[-1]) if rest else 1.0
    if count is None:
        return name, rest[-1], 1.0
    return name, rest[0] if len(rest) > 1 else None, count


def _count(text: str) -> float | None:
    scale = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}.get(text[-1:].upper(), 1)
    digits = text if scale == 1 else text[:-1]
    return float(digits) * scale if digits.isdigit() else None


def visible(
    runs_dir: Path, hardware: Hardware, there: Sequence[Partition], mounts: str | None = None
) -> None:
    """Raises `UserError` if compute nodes cannot see the folder of runs.

    mounts: the text of /proc/mounts.
    """
    names = {name for one in chosen(hardware, there) for name in one.nodes}
    if names == {socket.gethostname().split(".")[0]}:  # jobs run on this machine
        return
    place = runs_dir.resolve()
    if any(place.is_relative_to(os.path.expandvars(root)) for root in hardware.shared):
        return
    own = next((root for root in _OWN if place.is_relative_to(root)), None)
    kind = _file_system(place, Path("/proc/mounts").read_text() if mounts is None else mounts)
    why = f"{own} is this machine's own" if own else f"it lies in this machine's memory ({kind})"
    if own or kind in _IN_MEMORY:
        raise UserError(
            f"runs_dir: compute nodes cannot see {place}: {why}. Give runs_dir= on a shared file system; if"
            f" it is shared here, say so in {site_path()}: `shared: [{own or place}]`"
        )


def _file_system(place: Path, mounts: str) -> str:
    """The kind of file system a folder is on."""
    found = [line.split()[1:3] for line in mounts.splitlines() if len(line.split()) > 2]
    under = [(len(where), kind) for where, kind in found if place.is_relative_to(where)]
    return max(under, default=(0, "unknown"))[1]


def in_queue(wanted: Sequence[Task]) -> dict[Path, str]:
    """The job ids of tasks that SLURM has already, waiting or running, by directory.

    Raises `UserError` if one was submitted with another config, or SLURM does not answer.
    """
    ids = {task.directory: RunDirectory(task.directory).job().get("job_id") for task in wanted}
    known = slurm.states([job_id for job_id in ids.values() if job_id])
    if known is None:
        raise UserError("hardware: squeue does not answer. Try again in a moment; nothing was submitted")
    found = {}
    for task in wanted:
        job_id = ids[task.directory]
        state = known.get(job_id) if job_id else None
        if state is not None and not state.has_ended and not _is_stale(task, job_id):
            _refuse_other_config(task, str(job_id))
            found[task.directory] = str(job_id)
    return found


def _is_stale(task: Task, job_id: str | None) -> bool:
    """A job that has failed by its own account, and is about to leave the queue."""
    status = RunDirectory(task.directory).status()
    return status.state == "failed" and status.job_id == job_id


def _refuse_other_config(task: Task, job_id: str) -> None:
    if task.kind == "training" or not (task.directory / CONFIG_JSON).exists():
        return
    differences = sorted(_differences(load(task.directory).values, task.config.values))
    if differences:
        raise UserError(
            f"{task.title} is in the queue already, as job {job_id}, with other values:\n  "
            + "\n  ".join(differences)
            + f"\nTo submit it with these, cancel that job first: python launch.py jobs cancel {job_id}"
        )


def _differences(queued: Any, asked: Any, key: str = "") -> Iterator[str]:
    if key in _MAY_DIFFER:
        return
    if isinstance(queued, Mapping) and isinstance(asked, Mapping):
        for name in [*queued, *(name for name in asked if name not in queued)]:
            yield from _differences(queued.get(name), asked.get(name), f"{key}.{name}".lstrip("."))
    elif queued != asked:
        yield f"{key}: {queued!r} in the queue, {asked!r} now"
