"""Submitting to SLURM: tasks become jobs and arrays. The only module that knows submitit.

A job gets one thing, the path of a prepared directory, and reads everything else from there; so a requeued
job needs nothing but the disk.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repro import preflight, provenance, slurm, stopping, tasks
from repro.config import ROOT
from repro.errors import UserError
from repro.hardware import Hardware
from repro.locks import Busy
from repro.results import write_json
from repro.run_directory import RunDirectory, now
from repro.tasks import Task
from repro.workers import LOG, environment, mark_failed, python_path

# sbatch itself tries again for minutes when the queue is full.
SBATCH_SECONDS = int(os.environ.get("REPRO_SBATCH_SECONDS") or 60)
# The warning may come a minute early, and would end a Python that is still starting. Held back, it waits
# until `stopping.listen` takes it; what a process holds back stays held when it becomes another program.
_HOLD = (
    f"import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.{stopping.WARNING.name}]); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)
_ARRAY_LIMIT = 1000  # below SLURM's default MaxArraySize of 1001


@dataclass(frozen=True)
class Job:
    """A task and the job that does it. job_id: None if it could not be submitted, and `note` says why."""

    task: Task
    job_id: str | None
    note: str


class Run:
    """What a job does with the path of its directory. Pickled by reference, so it holds nothing."""

    def __call__(self, directory: str) -> None:
        from repro import slurm_job

        slurm_job.work(Path(directory))

    def checkpoint(self, directory: str) -> Any:
        """Called if the warning comes before anything has begun: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, directory)


def submit(wanted: Sequence[Task]) -> list[Job]:
    """Submit tasks, each with what it needs before it; what is in the queue already stays there.

    If SLURM takes only some, the rest come back without a job id.
    Raises `UserError` before anything is submitted if the profile cannot be served here or a task is in the
    queue with another config, and if SLURM takes none.
    """
    preflight.check(wanted)
    jobs = preflight.in_queue(wanted)
    made = {
        task.directory: Job(task, job_id, f"already in the queue as job {job_id}")
        for task in wanted
        if (job_id := jobs.get(task.directory))
    }
    code = provenance.code(ROOT)
    refused: UserError | None = None
    new = [task for task in wanted if task.directory not in made]
    for task in new:
        tasks.prepare(task)
    for part, after in groups(new, jobs, _array_limit()):
        try:
            submitted = [] if refused else _submit(part, after, code)
        except UserError as error:
            submitted, refused = [], error
        made |= {job.task.directory: job for job in submitted}
        jobs |= {job.task.directory: str(job.job_id) for job in submitted}
        for task in part if refused else []:
            mark_failed(task.directory, f"not submitted: {refused}")
            made[task.directory] = Job(task, None, f"not submitted: {refused}")
    if refused and not jobs:
        raise refused
    return [made[task.directory] for task in wanted]


def groups(
    wanted: Sequence[Task], jobs: Mapping[Path, str], limit: int = _ARRAY_LIMIT
) -> Iterator[tuple[list[Task], str | None]]:
    """Tasks that can be one array, with its dependency, in an order in which needs come first.

    jobs: job ids by directory, which may grow between two groups. Needs without a job are done.
    """
    left = list(wanted)
    while left:
        here = {task.directory for task in left}
        ready = [task for task in left if not here & set(task.needs)]
        assert ready, "tasks need each other in a circle"
        alike: dict[tuple[Any, ...], list[Task]] = {}
        for task in ready:
            alike.setdefault((task.kind, task.hardware.model_dump_json(), frozenset(task.needs)), []).append(
                task
            )
        for part in alike.values():
            for begin in range(0, len(part), limit):
                some = part[begin : begin + limit]
                yield some, dependency([jobs[need] for need in some[0].needs if need in jobs])
        left = [task for task in left if task not in ready]


def _array_limit() -> int:
    """Jobs that an array of this cluster may have."""
    try:
        return min(_ARRAY_LIMIT, int(slurm.settings()["MaxArraySize"]) - 1)
    except (slurm.NoAnswer, KeyError, ValueError):
        return _ARRAY_LIMIT


def dependency(job_ids: Sequence[str]) -> str | None:
    """sbatch's --dependency: only after all these have succeeded."""
    return ":".join(["afterok", *job_ids]) if job_ids else None


def sbatch_text(part: Sequence[Task], after: str | None = None) -> str:
    """The script that would be submitted for these tasks, an array if there are several. Needs no SLURM."""
    from submitit.slurm import slurm as script

    folder, hardware = _job_folder(part), part[0].hardware
    command = f"{_python(hardware)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    count = len(part) if len(part) > 1 else None
    text = script._make_sbatch_string(command, folder, map_count=count, **parameters(part, after))
    lines = [f"# task {number}: {task.directory}" for number, task in enumerate(part)]
    return "\n".join([text.rstrip(), "", *lines, ""])


def parameters(part: Sequence[Task], after: str | None = None) -> dict[str, Any]:
    """submitit's SLURM parameters for tasks of one kind and profile."""
    hardware = part[0].hardware
    kind = "" if part[0].kind == "run" else f"-{part[0].kind}"
    names = {f"{task.config.slug}-{task.config.experiment}" for task in part}
    options: dict[str, Any] = {"requeue": True, **hardware.options}
    if hardware.memory_gb is not None:
        options["mem"] = f"{round(hardware.memory_gb * 1024)}M"
    if after is not None:
        options["kill-on-invalid-dep"] = "yes"
    given = {
        "partition": hardware.partition,
        "account": hardware.account,
        "qos": hardware.qos,
        "constraint": hardware.constraint,
        "gres": hardware.generic_resources,
        "dependency": after,
    }
    return {
        "job_name": (names.pop() if len(names) == 1 else "repro") + kind,
        "time": hardware.timeout_min,
        "nodes": 1,  # a task is one process; `hardware.nodes` are those that an array of them fills
        "exclusive": hardware.nodes > 1 or None,
        "cpus_per_task": hardware.cpus,
        "array_parallelism": hardware.nodes if hardware.nodes > 1 else hardware.array_parallelism,
        "signal_delay_s": hardware.signal_delay_s,
        "stderr_to_stdout": True,
        "wckey": None,  # submitit's own default, which strict sites refuse
        "setup": _setup(hardware),
        "additional_parameters": options,
        **{name: value for name, value in given.items() if value is not None},
    }


def _setup(hardware: Hardware) -> list[str]:
    """Shell lines before the job proper. The site's names come first, so that ours are not undone by them."""
    exports = {**environment(hardware), "PYTHONPATH": python_path()}
    if hardware.generic_resources is not None:
        exports.pop("CUDA_VISIBLE_DEVICES", None)  # SLURM itself says which GPUs a job may see
    scratch = [
        f"export REPRO_SCRATCH={hardware.scratch}",  # not quoted: $USER and the like are for the shell
        'export TMPDIR="$REPRO_SCRATCH/job-$SLURM_JOB_ID"',
        'mkdir -p "$TMPDIR"',
        "trap 'rm -rf \"$TMPDIR\"' EXIT",  # unlike a last line, it leaves the exit code as it is
    ]
    return [
        *(f"module load {shlex.quote(name)}" for name in hardware.modules),
        *_activation(hardware.activate),
        *(scratch if hardware.scratch else []),
        *hardware.setup,
        "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK",  # since SLURM 22.05 srun does not take it over
        *(f"export {name}={shlex.quote(value)}" for name, value in exports.items()),
    ]


def _activation(name: str | None) -> list[str]:
    if name is None:
        return []
    if "/" in name and (Path(name).expanduser() / "bin" / "activate").exists():
        return [f"source {shlex.quote(str(Path(name).expanduser() / 'bin' / 'activate'))}"]
    return ['eval "$(conda shell.bash hook)"', f"conda activate {shlex.quote(name)}"]


def _python(hardware: Hardware) -> str:
    """The shell words that start Python in a job: it begins by holding back the warning."""
    return f"{'python' if hardware.activate else shlex.quote(sys.executable)} -IS -c {shlex.quote(_HOLD)}"


def _submit(part: Sequence[Task], after: str | None, code: Mapping[str, Any]) -> list[Job]:
    """Submit one job or array. Raises `UserError` if SLURM does not take it."""
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    hardware = part[0].hardware
    for task in part:
        _note(task, {**code, "time": now()})  # before the job can start
    executor = submitit.SlurmExecutor(
        _job_folder(part), max_num_timeout=hardware.max_requeues, python=_python(hardware)
    )
    executor.update_parameters(**parameters(part, after))
    try:
        with _impatient():
            made = executor.map_array(Run(), [str(task.directory) for task in part])
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(f"hardware: sbatch refused the job: {_why(error)}") from None
    jobs = []
    for task, job in zip(part, made, strict=True):
        _note(task, {**code, "time": now(), "job_id": job.job_id, "slurm_log": str(job.paths.stdout)})
        jobs.append(Job(task, job.job_id, f"submitted as job {job.job_id}"))
    return jobs


@contextmanager
def _impatient() -> Iterator[None]:
    """sbatch ends after a while. Submitit makes a new executor for an array, so the class is changed."""
    from submitit.slurm.slurm import SlurmExecutor

    plain = SlurmExecutor._make_submission_command

    def limited(self: Any, submission_file_path: Path) -> list[str]:
        return ["timeout", "--kill-after=5", str(SBATCH_SECONDS), *plain(self, submission_file_path)]

    SlurmExecutor._make_submission_command = limited
    try:
        yield
    finally:
        SlurmExecutor._make_submission_command = plain


def _why(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if "sbatch: error" in line]
    text = "; ".join(dict.fromkeys(line.removeprefix("sbatch: error: ") for line in lines)) or str(error)
    if "temporarily unable" in text:
        text += f". The queue is full (sbatch tried for {SBATCH_SECONDS} s)"
        text += "; later, the same command submits these"
    return text


def _note(task: Task, facts: Mapping[str, Any]) -> None:
    """Write job.json, which the job itself only reads, and the job id into the status."""
    hardware, run = task.hardware, RunDirectory(task.directory)
    bounds = {"max_requeues": hardware.max_requeues, "signal_delay_s": hardware.signal_delay_s}
    content = {
        "job_id": None,
        "log": str(task.directory / LOG),
        "title": task.title,
        "needs": [str(need) for need in task.needs],
        **bounds,
        **facts,
    }
    write_json(task.directory / "job.json", content)
    try:
        with run.lock():  # unless the job has started already, and written its own status
            if run.status().state == "queued":
                run.set_status("queued", job_id=content["job_id"])
    except Busy:
        pass


def _job_folder(part: Sequence[Task]) -> Path:
    return Path(part[0].config.values["runs_dir"]) / ".jobs" / "%j"
