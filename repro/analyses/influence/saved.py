"""Fitted factors on disk: one safetensors file a stage, and what they belong to."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from repro.analyses.influence.modules import Tracked
from repro.analyses.influence_specs import MANIFEST, InfluenceAnalysis
from repro.data.token_blocks import Blocks
from repro.errors import UserError
from repro.locks import Busy, exclusive
from repro.models.language_model import LanguageModel
from repro.results import cannot_write, read_json, write_json

Tensors = dict[str, Tensor]
SAID = {
    "model": "weights of another model",
    "data": "other blocks or labels",
    "dtype": "another dtype",
    "gentle": "another mode of half precision",
    "fisher": "other labels (analysis.fisher)",
    "seed": "other draws of labels (analysis.seed)",
    "modules": "other modules",
}


def fingerprint(
    model: LanguageModel, tracked: Sequence[Tracked], train: Blocks, settings: InfluenceAnalysis
) -> dict[str, Any]:
    """Everything that can change a factor."""
    given = train if settings.fisher == "given" else Blocks(train.tokens, train.mask)
    return {
        "model": weights_checksum(model),
        "data": blocks_checksum(given),
        "dtype": settings.dtype,
        "gentle": settings.gentle,
        "fisher": settings.fisher,
        "seed": settings.seed if settings.fisher == "sampled" else None,
        "modules": [one.name for one in tracked],
    }


def digest(content: Mapping[str, Any]) -> str:
    """12 hexadecimal digits for plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def weights_checksum(model: LanguageModel) -> str:
    """sha256 of the names and bytes of all parameters."""
    found = hashlib.sha256()
    for name, parameter in sorted(model.hf.named_parameters()):
        found.update(f"{name}\0{parameter.dtype}\0{tuple(parameter.shape)}\0".encode())
        found.update(_bytes(parameter))
    return found.hexdigest()


def blocks_checksum(blocks: Blocks) -> str:
    """sha256 of token ids, mask and labels."""
    found = hashlib.sha256()
    for tensor in (blocks.tokens, blocks.mask, blocks.labels):
        found.update(b"none" if tensor is None else repr(tuple(tensor.shape)).encode() + _bytes(tensor))
    return found.hexdigest()


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def save(path: Path, tensors: Tensors) -> None:
    """Write a file; readers see the old one or the whole new one. Raises `UserError` on a full disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise cannot_write(path, error if isinstance(error, OSError) else OSError(str(error))) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def read(path: Path) -> Tensors:
    """Raises `UserError` for a damaged file."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}). Delete it, and it is computed again") from None


def opened(folder: Path, wanted: Mapping[str, Any]) -> Path:
    """A folder for factors of this fingerprint, begun if need be. Raises `UserError` if others lie there."""
    manifest = folder / MANIFEST
    if manifest.exists():
        check(folder, wanted)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(manifest, dict(wanted))
    return folder


def check(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Refuse factors of another model, other data, modules or dtype."""
    found = read_json(folder / MANIFEST)
    odd = [key for key in wanted if found.get(key) != wanted[key]]
    if odd:
        said = ", ".join(_odd(key, found.get(key), wanted[key]) for key in odd)
        raise UserError(
            f"{folder}: these factors are of {said}. Leave out analysis.factors_path to fit new"
            " ones, or give those of this model, data and settings"
        )


def _odd(key: str, theirs: Any, ours: Any) -> str:
    short = not isinstance(ours, list) and len(str(ours)) < 12
    return SAID[key] + (f" ({theirs}, this run has {ours})" if short else "")


def summed(
    folder: Path | None, stage: str, count: int, compute: Callable[[int], Tensors],
    reading: Callable[[Path], Tensors] = read, writing: Callable[[Path, Tensors], None] = save,
) -> Tensors:  # fmt: skip
    """A stage that is a sum over parts, each of which is saved; processes with one folder share them out.

    Who finds a part missing that nobody is at computes it, and waits for those that others are at. What a
    process that was killed leaves undone is taken over, since its lock goes with it.
    """
    if folder is None:
        return _total([compute(index) for index in range(count)])
    whole = folder / f"{stage}.safetensors"
    parts = [folder / f"{stage}.{index}-of-{count}.safetensors" for index in range(count)]
    if count > 1:
        _work_through(parts, whole, lambda index: writing(parts[index], compute(index)))
    with exclusive(folder / f".{stage}.lock", wait=True):
        if not whole.exists():
            writing(whole, compute(0) if count == 1 else _total([read(part) for part in parts]))
    for part in parts:
        part.unlink(missing_ok=True)
        part.with_suffix(".lock").unlink(missing_ok=True)
    return reading(whole)


def _work_through(parts: Sequence[Path], whole: Path, work: Callable[[int], None]) -> None:
    missing, wait = list(range(len(parts))), False
    while missing:
        for index in list(missing):
            try:
                with exclusive(parts[index].with_suffix(".lock"), wait=wait):
                    if not (whole.exists() or parts[index].exists()):
                        work(index)
            except Busy:
                continue
            missing.remove(index)
        wait = True


def _total(parts: Sequence[Tensors]) -> Tensors:
    total = dict(parts[0])
    for part in parts[1:]:
        for name, tensor in part.items():
            total[name] = total[name] + tensor
    return total
