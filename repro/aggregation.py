"""Repeats of one experiment with other seeds, as one result."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from repro import results
from repro.config import Config
from repro.results import NamedArray, Result, write_atomic


def seed_label(seed: int | Mapping[str, int]) -> str:
    """The seed in a legend: the integer, or the initialisation seed, with the others if they are given."""
    return f"seed {seed}" if isinstance(seed, int) else f"init seed {seed['init']}"


def directory_of(configs: Sequence[Config]) -> Path:
    """Where the aggregate of these runs lies: beside them, named by all of them."""
    joint = hashlib.sha256(" ".join(sorted(config.hash for config in configs)).encode()).hexdigest()
    return configs[0].directory.parent / f"seeds-{joint[:8]}"


def stack(together: Sequence[Result], seeds: Sequence[str]) -> Result:
    """Arrays with a leading `seed` axis (those all runs have in one shape); of scalars mean, min and max."""
    scalars, first = {}, together[0]
    for name in first.scalars:
        if all(name in one.scalars for one in together):
            values = np.array([one.scalars[name] for one in together])
            scalars |= {f"{name}.mean": float(values.mean()), f"{name}.min": float(values.min())}
            scalars |= {f"{name}.max": float(values.max())}
    arrays = {}
    for name, array in first.arrays.items():
        same = [one.arrays[name] for one in together if name in one.arrays]
        if len(same) == len(together) and len({one.values.shape for one in same}) == 1:
            axes: dict[str, Any] = {"seed": list(seeds), **array.axes}
            arrays[name] = NamedArray(np.stack([one.values for one in same]), axes, array.unit)
    return Result(scalars, arrays, {"seeds": ", ".join(seeds)})


def save(configs: Sequence[Config], together: Sequence[Result], seeds: Sequence[str]) -> Path:
    """Write the aggregate, and which runs it is made of."""
    directory = directory_of(configs)
    directory.mkdir(parents=True, exist_ok=True)
    results.save(directory, stack(together, seeds))
    runs = {"runs": {label: str(config.directory) for label, config in zip(seeds, configs, strict=True)}}
    write_atomic(directory / "aggregate.yaml", yaml.safe_dump(runs, sort_keys=False))
    return directory
