"""What to change so that a run fits: another profile, a smaller dtype, more memory, or the host's memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from repro import listing
from repro.config import ROOT, Config
from repro.errors import UserError
from repro.estimates import Estimate, estimate, shortage
from repro.hardware import Hardware
from repro.machines import GIB, machine

# Smaller than the key; float16 is offered where it was asked for only.
_SMALLER = {"float64": ("float32", "bfloat16"), "float32": ("bfloat16",)}


def hints(config: Config, hardware: Hardware, need: Estimate, root: Path = ROOT) -> str:
    """Overrides with which the run would fit, each tried on the estimate."""
    found = [*_dtypes(config, hardware), *_memory(config, hardware, need), *_profiles(config, root)]
    if not found:
        return "Nothing here would fit it: choose a smaller model"
    return f"What would fit: {', or '.join(found)}"


def _dtypes(config: Config, hardware: Hardware) -> list[str]:
    model = config.values.get("model") or {}
    for dtype in _SMALLER.get(str(model.get("dtype")), ()):
        if _fits(config.replaced(model={**model, "dtype": dtype}), hardware):
            return [f"model.dtype={dtype}"]
    return []


def _memory(config: Config, hardware: Hardware, need: Estimate) -> list[str]:
    on_gpu = machine(hardware, 1).on_gpu
    if hardware.executor != "slurm":
        return []  # a machine has what it has
    said = [f"hardware.memory_gb={_rounded(need):g}"]
    more: dict[str, Any] = {"memory_gb": _rounded(need)}
    if on_gpu and not _fits(config, hardware.model_copy(update=more)):
        more["device_map"] = "auto"
        more["memory_gb"] = _rounded(estimate(config, hardware.model_copy(update=more)))
        memory = f"{more['memory_gb']:g}"
        said = [f"hardware.device_map=auto hardware.memory_gb={memory} (slow: some weights lie on the host)"]
    return said if _fits(config, hardware.model_copy(update=more)) else []


def _rounded(need: Estimate) -> float:
    """GiB of host memory, the next whole number."""
    return float(int(need.host_bytes / GIB) + 1)


def _profiles(config: Config, root: Path) -> list[str]:
    import yaml

    fitting = []
    for name in listing.choices(root, "hardware"):
        profile = yaml.safe_load((root / "conf" / "hardware" / f"{name}.yaml").read_text()) or {}
        other = Hardware.parse(profile, f"hardware={name}")
        if other.executor == "slurm" and _fits(config, other):
            fitting.append(f"hardware={name}")
    return fitting


def _fits(config: Config, hardware: Hardware) -> bool:
    try:
        return shortage(estimate(config, hardware), hardware) is None
    except UserError:
        return False
