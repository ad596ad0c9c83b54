"""Where runs go: this process, several processes here, or SLURM. The only module that knows submitit.

The hardware profile alone decides. A job gets one thing, the path of a prepared run directory, and reads
everything else from its config.json; so a requeued job needs nothing but the disk.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from repro.config import Config, load
from repro.errors import UserError
from repro.hardware import Hardware
from repro.locks import Busy
from repro.results import write_json
from repro.run_directory import RunDirectory
from repro.workers import Outcome, environment, execute, mark_failed, prepare, python_path, run_processes

_CLIENT_SECONDS = 60  # SLURM's own clients give up after 59 s when the controller does not answer
_POLL_SECONDS = 5.0
_ARRAY_LIMIT = 1000  # below SLURM's default MaxArraySize of 1001


def dispatch(configs: Sequence[Config], hardware: Hardware) -> list[Outcome]:
    """Run or submit configs that share one hardware profile; one failure does not stop the others.

    Raises `UserError` before anything starts if the profile cannot be served here.
    """
    if hardware.executor == "slurm":
        _require_slurm()
        waiting = [outcome for config in configs if (outcome := _in_queue_already(config))]
        configs = [config for config in configs if config not in [outcome.config for outcome in waiting]]
    for config in configs:
        prepare(config)
    if hardware.executor == "slurm":
        outcomes = [*waiting, *_submit(configs, hardware)]
        return [_wait(outcome) for outcome in outcomes] if hardware.wait else outcomes
    if hardware.executor == "processes":
        return run_processes(configs, hardware)
    os.environ.update(environment(hardware))
    return [Outcome(config, execute(config)) for config in configs]


class Run:
    """What a job does with the path of its run directory. Pickled by reference, so it holds nothing."""

    def __call__(self, directory: str) -> None:
        config = load(directory)
        if int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0:
            # A requeued job goes on; only its first start was from scratch.
            config = config.replaced(rerun=False)
        code = execute(config)
        if code:
            # Raised so that SLURM, too, says FAILED.
            raise RuntimeError(f"{config.title} failed with code {code}: see above")

    def checkpoint(self, directory: str) -> Any:
        """Called before the time limit: the same again; the state to resume from is on disk already."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, directory)


def sbatch_text(configs: Sequence[Config], hardware: Hardware) -> str:
    """The script that would be submitted for these runs, an array if there are several. Needs no SLURM."""
    from submitit.slurm import slurm

    folder = _job_folder(configs)
    command = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    count = len(configs) if len(configs) > 1 else None
    text = slurm._make_sbatch_string(command, folder, map_count=count, **parameters(configs, hardware))
    tasks = [f"# task {number}: {config.directory}" for number, config in enumerate(configs)]
    return "\n".join([text.rstrip(), "", *tasks, ""])


def parameters(configs: Sequence[Config], hardware: Hardware) -> dict[str, Any]:
    """submitit's SLURM parameters for a profile."""
    names = {f"{config.slug}-{config.experiment}" for config in configs}
    options: dict[str, Any] = {"requeue": True, **hardware.options}
    if hardware.memory_gb is not None:
        options["mem"] = f"{round(hardware.memory_gb * 1024)}M"
    exports = {**environment(hardware), "PYTHONPATH": python_path()}
    if hardware.generic_resources is not None:
        exports.pop("CUDA_VISIBLE_DEVICES", None)  # SLURM itself says which GPUs a job may see
    given = {
        "partition": hardware.partition,
        "account": hardware.account,
        "qos": hardware.qos,
        "constraint": hardware.constraint,
        "gres": hardware.generic_resources,
    }
    return {
        "job_name": names.pop() if len(names) == 1 else "repro",
        "time": hardware.timeout_min,
        "nodes": 1,  # a run is one process; `hardware.nodes` spreads an array
        "exclusive": hardware.nodes > 1 or None,
        "cpus_per_task": hardware.cpus,
        "array_parallelism": hardware.nodes if hardware.nodes > 1 else hardware.array_parallelism,
        "signal_delay_s": hardware.signal_delay_s,
        "stderr_to_stdout": True,
        "wckey": None,  # submitit's own default, which strict sites refuse
        "setup": [
            *(f"module load {shlex.quote(name)}" for name in hardware.modules),
            *hardware.setup,
            # Since SLURM 22.05 srun no longer inherits the number of CPUs.
            "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK",
            *(f"export {name}={shlex.quote(value)}" for name, value in exports.items()),
        ],
        "additional_parameters": options,
        **{name: value for name, value in given.items() if value is not None},
    }


def _require_slurm() -> None:
    missing = [name for name in ("sbatch", "srun") if shutil.which(name) is None]
    if missing:
        raise UserError(
            f"hardware: this profile submits to SLURM, and {' and '.join(missing)} cannot be found on PATH."
            " Run it on a login node, choose hardware=local, or add dry_run=true to see the job script"
        )


def _submit(configs: Sequence[Config], hardware: Hardware) -> list[Outcome]:
    import submitit
    from submitit.core.utils import FailedJobError

    outcomes = []
    for first in range(0, len(configs), _ARRAY_LIMIT):
        part = configs[first : first + _ARRAY_LIMIT]
        executor = submitit.SlurmExecutor(_job_folder(part), max_num_timeout=hardware.max_requeues)
        executor.update_parameters(**parameters(part, hardware))
        try:
            jobs = executor.map_array(Run(), [str(config.directory) for config in part])
        except FailedJobError as error:
            for config in part:
                mark_failed(config, f"not submitted: {error}")
            raise UserError(f"hardware: sbatch refused the job: {error}") from None
        for config, job in zip(part, jobs, strict=True):
            _note_job(config, job.job_id, str(job.paths.stdout))
            outcomes.append(Outcome(config, None, f"submitted as job {job.job_id}, log {job.paths.stdout}"))
            print(f"{config.title}: {outcomes[-1].note}", flush=True)
    return outcomes


def _in_queue_already(config: Config) -> Outcome | None:
    job_id = job_of(config)
    if job_id is None or RunDirectory(config.directory).status().state not in ("queued", "running"):
        return None
    if not in_queue(job_id):
        return None
    print(f"{config.title}: already in the queue as job {job_id}", flush=True)
    return Outcome(config, None, f"already in the queue as job {job_id}")


def _note_job(config: Config, job_id: str, log: str) -> None:
    write_json(config.directory / "job.json", {"job_id": job_id, "log": log})
    run = RunDirectory(config.directory)
    try:
        with run.lock():  # unless the job has started already, and written its own status
            if run.status().state == "queued":
                run.set_status("queued", job_id=job_id)
    except Busy:
        pass


def _wait(outcome: Outcome) -> Outcome:
    """Until the run is done or failed, or its job is gone without either."""
    run = RunDirectory(outcome.config.directory)
    job_id = job_of(outcome.config)
    gone = 0
    while True:
        status = run.status()
        if run.is_done():
            return Outcome(outcome.config, 0, "done")
        if status.state == "failed":
            return Outcome(outcome.config, 1, f"failed: {status.reason}")
        gone = 0 if job_id is None or in_queue(job_id) else gone + 1
        if gone > 2:  # a shared file system may show the result a little later
            return Outcome(outcome.config, 1, f"job {job_id} ended without a result: see its log")
        time.sleep(_POLL_SECONDS)


def job_of(config: Config) -> str | None:
    """The job a run was last submitted as, None if it never was."""
    path = config.directory / "job.json"
    return str(json.loads(path.read_text())["job_id"]) if path.exists() else None


def in_queue(job_id: str) -> bool:
    """Whether SLURM still has the job, waiting or running; True if SLURM does not answer."""
    command = ["squeue", "--noheader", "--format=%T", f"--jobs={job_id}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_CLIENT_SECONDS)
    except FileNotFoundError:
        return False
    except (OSError, subprocess.TimeoutExpired):
        return True
    if answer.returncode:
        return "Invalid job id" not in answer.stderr
    return any(
        word not in ("", "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT") for word in answer.stdout.split()
    )


def _job_folder(configs: Sequence[Config]) -> Path:
    return Path(configs[0].values["runs_dir"]) / ".jobs" / "%j"
