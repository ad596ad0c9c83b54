"""Arrays in files of others: .npy, and the .pt files of published results, which are pickles."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

from repro.errors import UserError


def read(path: str, key: str) -> np.ndarray:
    """The one array of a file. A pickle is read with an allow-list of NumPy's own arrays, and no code of it
    runs.

    Raises `UserError`, naming the config key, for files that are missing, damaged or hold anything else.
    """
    file = Path(path).expanduser()
    if not file.exists():
        raise UserError(f"{key}: no such file: {file.absolute()}. Give {key}=FILE.npy")
    if file.suffix not in (".npy", ".pt"):
        raise UserError(f"{key}: {file}: got {file.suffix or 'no ending'}. Valid: .npy, .pt")
    try:
        found = np.load(file, allow_pickle=False) if file.suffix == ".npy" else _safely(file)
    except (OSError, ValueError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{key}: {file} cannot be read safely: {first}\nGive an array: numpy.save('FILE.npy', array)"
        ) from None
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "biuf":
        raise UserError(f"{key}: {file}: expected one array of numbers, got {type(found).__name__}")
    return found


def _safely(file: Path) -> np.ndarray:
    import torch
    from numpy._core import multiarray  # where NumPy's own pickles say that arrays come from

    allowed = [
        np.ndarray, np.dtype, multiarray._reconstruct, multiarray.scalar,
        *(type(np.dtype(kind)) for kind in ("int8", "uint8", "bool", "int64", "float32", "float64")),
    ]  # fmt: skip
    with torch.serialization.safe_globals(allowed):  # type: ignore[arg-type]
        found = torch.load(file, weights_only=True, map_location="cpu")
    return found.numpy() if isinstance(found, torch.Tensor) else found
