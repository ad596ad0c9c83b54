"""What SLURM's own programs say: every call in one place, each with a time-out, none of submitit.

A controller that is down lets a client wait for 9 s, a wrong SLURM_CONF for 59 s.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from repro.errors import UserError

SECONDS = 20.0
# States that a job does not leave by itself.
FAILED_STATES = (
    "BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "REVOKED", "TIMEOUT",
)  # fmt: skip
ENDED_STATES = ("COMPLETED", "PREEMPTED", *FAILED_STATES)


@dataclass(frozen=True)
class JobState:
    """One job, or one task of an array, as squeue shows it: state in capitals, and the reason it gives."""

    job_id: str
    state: str
    reason: str = ""
    restarts: int = 0

    @property
    def is_waiting(self) -> bool:
        return self.state in (
            "PENDING",
            "REQUEUED",
            "REQUEUE_HOLD",
            "REQUEUE_FED",
            "SUSPENDED",
            "SPECIAL_EXIT",
        )

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED_STATES

    def __str__(self) -> str:
        said = "" if self.reason in ("", "None", "NonZeroExitCode") else f" ({self.reason})"
        return f"{self.state}{said}"


@dataclass(frozen=True)
class Partition:
    """Some nodes of a partition that are alike. minutes: the time limit, None without; memory in MB."""

    name: str
    minutes: int | None
    gres: str
    memory: int
    cpus: int
    nodes: tuple[str, ...]
    default: bool


class NoAnswer(Exception):
    """SLURM did not answer in time, or could not."""


def require() -> None:
    """Raises `UserError` where SLURM's programs are not there."""
    missing = [name for name in ("sbatch", "srun") if shutil.which(name) is None]
    if missing:
        raise UserError(
            f"hardware: this profile submits to SLURM, but {' and '.join(missing)} cannot be found on this"
            " machine. Log in to the cluster, or choose hardware=local, local_parallel or debug"
        )


def ask(*command: str, seconds: float = SECONDS) -> str:
    """The output of one of SLURM's programs.

    Raises `NoAnswer` if it hangs, fails or is not there.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=_environment())
    except FileNotFoundError:
        raise NoAnswer(f"{command[0]} cannot be found") from None
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"{command[0]} did not answer within {seconds:.0f} s") from None
    if done.returncode:
        raise NoAnswer(done.stderr.strip() or f"{command[0]} ended with code {done.returncode}")
    return done.stdout


def _environment() -> dict[str, str]:
    """Without the user's own formats and filters, which would change what is read here."""
    return {
        key: value for key, value in os.environ.items() if not key.startswith(("SQUEUE_", "SINFO_", "SACCT_"))
    }


def base_id(job_id: str) -> str:
    """The array of a task: "41" of "41_3"."""
    return job_id.split("_")[0]


def states(job_ids: Collection[str]) -> dict[str, JobState] | None:
    """What squeue knows of these jobs, in one call; jobs that it has forgotten are missing.

    None if SLURM does not answer: then nothing is known of any job.
    """
    if not job_ids:
        return {}
    bases = ",".join(sorted({base_id(job_id) for job_id in job_ids}, key=int))
    try:
        text = ask("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r", f"--jobs={bases}")
    except NoAnswer as error:
        return {} if "Invalid job id" in str(error) else None
    found = {}
    for line in text.splitlines():
        job_id, state, reason = [*line.strip().split("|", 2), "", ""][:3]
        found[job_id] = JobState(job_id, state, reason)
    return {job_id: found[job_id] for job_id in job_ids if job_id in found}


def last_word(job_id: str) -> JobState | None:
    """What scontrol, and sacct where there is accounting, know of a job that squeue has forgotten."""
    try:
        text = ask("scontrol", "--oneliner", "show", "job", job_id)
        fields = dict(word.split("=", 1) for word in text.split() if "=" in word)
        restarts = int(fields.get("Restarts") or 0)
        return JobState(job_id, fields["JobState"], fields.get("Reason", ""), restarts)
    except (NoAnswer, KeyError, ValueError):
        pass
    try:
        text = ask(
            "sacct", "--noheader", "--parsable2", "--allocations", "--format=State", f"--jobs={job_id}"
        )
    except NoAnswer:
        return None
    words = text.split()
    return JobState(job_id, words[0].split("|")[-1]) if words and words[0].isupper() else None


def cancel(job_ids: Sequence[str]) -> None:
    """Raises `UserError` if SLURM refuses."""
    try:
        ask("scancel", *job_ids)
    except NoAnswer as error:
        raise UserError(f"jobs cancel: {error}") from None


def requeue(job_id: str) -> None:
    """Put a running job back into the queue, which ends it here. Raises `NoAnswer` if SLURM refuses."""
    ask("scontrol", "requeue", job_id)


def settings() -> dict[str, str]:
    """The cluster's own settings, such as MaxArraySize. Raises `NoAnswer`."""
    pairs = re.findall(r"^(\w+)\s*= (.*)$", ask("scontrol", "show", "config"), re.MULTILINE)
    return {key: value.strip() for key, value in pairs}


def partitions() -> list[Partition]:
    """Every partition, as one entry for each kind of node in it. Raises `NoAnswer`."""
    text = ask("sinfo", "--noheader", "--Node", "--format=%P|%l|%G|%m|%c|%N")
    alike: dict[tuple[str, ...], list[str]] = {}
    for line in text.splitlines():
        *kind, node = [part.strip() for part in line.split("|")]
        alike.setdefault(tuple(kind), []).append(node)
    return [
        Partition(name.rstrip("*"), limit(time), gres, _number(memory), _number(cpus), tuple(nodes),
                  name.endswith("*"))
        for (name, time, gres, memory, cpus), nodes in alike.items()
    ]  # fmt: skip


def limit(text: str) -> int | None:
    """The minutes of a time limit as sinfo writes it, such as "1-00:00:00" or "30:00"; None if infinite."""
    from repro.hardware import minutes

    return None if text in ("infinite", "UNLIMITED", "n/a") else minutes(text)


def _number(text: str) -> int:
    return int(re.sub(r"\D", "", text) or 0)
