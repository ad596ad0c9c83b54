"""Hardware profiles: where a run goes, and what one site calls its partitions and modules."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from repro.errors import UserError
from repro.specs import Spec

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
# A variable or an option with such a name, or what W&B's and Hugging Face's keys look like.
_SECRET_LINE = re.compile(
    r"(?i)(key|token|secret|password)\w*\s*=|--(token|password)\b|\b[0-9a-f]{40}\b|\bhf_\w{20}"
)


class Site(Spec):
    """What only a site knows. Values given here replace those of a SLURM profile.

    partition, account, qos, constraint: as sbatch names them. modules: loaded in every job.
    activate: a virtual environment (its folder) or a conda environment (its name or folder), whose python
    then runs the job; null: the one that submits. setup: shell lines that every job runs after these two.
    scratch: a fast folder of the compute nodes: REPRO_SCRATCH in jobs, with a TMPDIR for each in it.
    shared: folders that compute nodes see, too. gpu_type: what the site calls its GPUs.
    gpu_memory_gb: GiB of one of them; null: as known of the type. options: further sbatch options by name.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpu_type: str | None = None
    gpu_memory_gb: Annotated[float, Field(gt=0)] | None = None
    modules: list[str] = []
    activate: str | None = None
    setup: list[str] = []
    scratch: str | None = None
    shared: list[str] = []
    options: dict[str, str | int | float | bool] = {}

    @field_validator("setup", "options")
    @classmethod
    def _no_secret(cls, given: Any, info: ValidationInfo) -> Any:
        for line in given.values() if isinstance(given, Mapping) else given:
            if _SECRET_LINE.search(str(line)):
                raise UserError(
                    f"{info.field_name}: a line sets something that looks like a secret, and would be written"
                    " into every job script. Set it in your own environment instead: SLURM passes that on"
                )
        return given


class SiteFile(Site):
    """The site file: values for every SLURM profile, and under `profiles` for single ones by name."""

    profiles: dict[str, Site] = {}


class Hardware(Site):
    """A hardware profile: where a run goes and what it may use.

    executor: `inline` runs here, `processes` runs `workers` processes at a time here, `slurm` submits.
    device: `auto` takes a GPU if there is one. matmul: rounding of matrix products on a GPU.
    device_map: how a model too large for one GPU is spread. threads: CPU threads a process may use.
    nodes: how many nodes the runs of an array fill, each run alone on one; 1: SLURM places jobs as it likes.
    gpus: per node; `gres` overrules what is made of gpus and gpu_type. memory_gb: GiB per node.
    timeout_min: minutes, or one of SLURM's forms such as "1-12:00:00".
    max_requeues: how often a job goes back into the queue to resume, after its time limit or a preemption.
    signal_delay_s: how long before the limit it is told.
    """

    executor: Literal["inline", "processes", "slurm"]
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    matmul: Literal["float32", "tensorfloat32"] = "float32"
    device_map: Literal["auto", "balanced", "sequential"] | None = None
    workers: Count | None = None
    threads: Count | None = None
    nodes: Count = 1
    cpus: Count = 1
    memory_gb: Annotated[float, Field(gt=0)] | None = None
    gpus: Natural = 0
    gres: str | None = None
    timeout_min: Count = 60
    array_parallelism: Count = 16
    max_requeues: Natural = 3
    signal_delay_s: Count = 120

    @field_validator("timeout_min", mode="before")
    @classmethod
    def _time(cls, value: Any) -> Any:
        return minutes(value) if isinstance(value, str) else value

    @property
    def generic_resources(self) -> str | None:
        """The value of sbatch's --gres, such as "gpu:a100:1"; None without GPUs."""
        if self.gres is not None:
            return self.gres
        return (
            ":".join(part for part in ("gpu", self.gpu_type, str(self.gpus)) if part) if self.gpus else None
        )


def minutes(text: str) -> int:
    """The minutes, rounded up, of a time in one of SLURM's forms. Raises `UserError` for anything else."""
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise UserError(
            f"timeout_min: {text!r} is no time. Valid: minutes (90), and SLURM's forms MM:SS, HH:MM:SS, D-HH,"
            ' D-HH:MM and D-HH:MM:SS, in quotes in a file (timeout_min: "1-12:00:00")'
        )
    days, *parts = match.groups()
    given = [int(part) for part in parts if part is not None]
    units = (3600, 60, 1) if days is not None or len(given) == 3 else (60, 1)
    seconds = int(days or 0) * 86400 + sum(part * unit for part, unit in zip(given, units, strict=False))
    return -(-seconds // 60)


def cpu_count() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def cpu_share(hardware: Hardware) -> int:
    """CPU threads for one process of a profile: as it says, else what it has divided among its processes."""
    if hardware.threads or hardware.executor == "slurm":
        return hardware.threads or hardware.cpus
    return max(1, cpu_count() // worker_count(hardware)) if hardware.executor == "processes" else cpu_count()


def worker_count(hardware: Hardware) -> int:
    """How many processes work at a time: as the profile says, else as many as the CPUs here have room for."""
    return hardware.workers or max(1, cpu_count() // (hardware.threads or 1))


def site_path(environment: Mapping[str, str] = os.environ) -> Path:
    """The file outside the repository with this site's names: $REPRO_SITE, or ~/.config/repro/site.yaml."""
    home = Path(environment.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    return Path(environment.get("REPRO_SITE") or home / "repro" / "site.yaml").expanduser()


def read_site(path: Path, required: bool) -> SiteFile:
    """The site file; an empty one if there is none.

    Raises `UserError` if it is damaged, or missing but required.
    """
    import yaml

    if not path.exists() and not required:
        return SiteFile()
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"site file {path} cannot be read: {error}. Mend it, or unset REPRO_SITE") from None
    if not isinstance(content, Mapping):
        raise UserError(
            f"site file {path}: expected keys and values such as 'partition: gpu', got {content!r}"
        )
    return SiteFile.parse(content, f"site file {path}:")


def with_site(
    hardware: dict[str, Any], profile: str, given: Collection[str], profiles: Collection[str]
) -> dict[str, Any]:
    """A SLURM profile with the site's names filled in; anything else as it is.

    given: the keys of `hardware` set on the command line, which nothing replaces. profiles: those there are.
    Raises `UserError` for a wrong site file, or one that names others.
    """
    if hardware.get("executor") != "slurm":
        return hardware
    site = read_site(site_path(), required="REPRO_SITE" in os.environ)
    unknown = sorted(set(site.profiles) - set(profiles))
    if unknown:
        raise UserError(
            f"site file {site_path()}: profiles: there is no hardware={unknown[0]}. Valid names:"
            f" {', '.join(sorted(profiles))}"
        )
    filled = dict(hardware)
    for part in (site, site.profiles.get(profile, Site())):
        for key in part.model_fields_set - {"profiles"} - set(given):
            filled[key] = getattr(part, key)
    return filled
