"""Features: one vector for each (class, exemplar), made up, read from a file, or the authors' own."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from repro.data.download import download
from repro.data.specs import (
    PUBLISHED_BYTES,
    PUBLISHED_SHA256,
    Data,
    FeaturesFile,
    Gaussian,
    NoData,
    OmniglotFeatures,
    OmniglotImages,
    sha256_of,
)
from repro.errors import UserError


@dataclass(frozen=True)
class Features:
    """Loaded features, and where they come from.

    sha256: of the file they were read from, or of the array's bytes if they were computed.
    is_published: whether the file is the authors' own, byte for byte.
    """

    values: Float32[np.ndarray, "class exemplar dim"]
    source: str
    sha256: str
    kind: str
    is_published: bool = False


def load(spec: Data) -> Features | None:
    """The features that `spec` describes; None for `kind: none`.

    Raises `UserError` for a file that is missing, not HDF5, without the dataset, of the wrong
    rank, empty or not finite, and for a checksum that differs.
    """
    match spec:
        case NoData():
            return None
        case Gaussian():
            return _gaussian(spec)
        case FeaturesFile():
            assert spec.path is not None
            return _from_file(Path(spec.path).expanduser(), spec.dataset, spec.kind)
        case OmniglotFeatures():
            return _omniglot_features(spec)
        case OmniglotImages():
            from repro.data import omniglot  # scikit-image and scikit-learn take a second to import

            return omniglot.load(spec)
    raise TypeError(f"no loader for {type(spec).__name__}")


def computed(values: Float32[np.ndarray, "class exemplar dim"], source: str, kind: str) -> Features:
    """Features that were computed, not read: their checksum is that of their bytes."""
    return Features(values, source, hashlib.sha256(values.tobytes()).hexdigest(), kind)


def _gaussian(spec: Gaussian) -> Features:
    stream = np.random.default_rng(spec.seed)
    shape = (spec.classes, spec.exemplars, spec.dim)
    if spec.noise is None:
        values, source = stream.standard_normal(shape), "i.i.d. N(0, 1)"
    else:
        means = stream.standard_normal((spec.classes, 1, spec.dim))
        values = means + spec.noise * stream.standard_normal(shape)
        source = f"class means N(0, 1) + {spec.noise} * N(0, 1)"
    return computed(values.astype(np.float32), f"{source}, seed {spec.seed}", spec.kind)


def _omniglot_features(spec: OmniglotFeatures) -> Features:
    accepted = {spec.sha256, spec.accept_checksum} - {None}
    if spec.path is None:
        path = download(spec.url, spec.accept_checksum or spec.sha256, spec.cache, "data.accept_checksum")
    else:
        path = Path(spec.path).expanduser()
        got = sha256_of(path)
        if got not in accepted:
            expected = f"sha256 {spec.sha256}" + (
                f", {PUBLISHED_BYTES:,} bytes" if spec.sha256 == PUBLISHED_SHA256 else ""
            )
            raise UserError(
                f"data.path: {path} is not the published feature file.\n  expected {expected}\n"
                f"  got      sha256 {got}, {path.stat().st_size:,} bytes\n"
                f"To use it on purpose: data.accept_checksum={got}, or data=features_file data.path={path}"
            )
    return _from_file(path, spec.dataset, spec.kind)


def _from_file(path: Path, dataset: str, kind: str) -> Features:
    checksum = sha256_of(path)
    values = check(_read_hdf5(path, dataset), f"data.path: {path}, dataset {dataset!r}")
    return Features(values, str(path), checksum, kind, checksum == PUBLISHED_SHA256)


def _read_hdf5(path: Path, dataset: str) -> np.ndarray:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            found: dict[str, tuple[int, ...]] = {}
            file.visititems(
                lambda name, item: (
                    found.update({name: item.shape}) if isinstance(item, h5py.Dataset) else None
                )
            )
            if dataset.strip("/") not in found:
                listing = ", ".join(f"{name} {list(shape)}" for name, shape in found.items()) or "none at all"
                raise UserError(
                    f"data.dataset: {path} has no dataset {dataset!r}. Datasets in it: {listing}."
                    " Choose one with data.dataset=NAME"
                )
            return np.asarray(file[dataset])
    except OSError as error:
        raise UserError(
            f"data.path: {path} cannot be read as HDF5 ({error}). Expected an HDF5 file with a dataset"
            f" {dataset!r} of shape (class, exemplar, dim); is it complete?"
        ) from None


def check(values: np.ndarray, where: str) -> Float32[np.ndarray, "class exemplar dim"]:
    """`values` as float32, or a `UserError` that starts with `where` if they are no finite features."""
    if values.ndim != 3:
        raise UserError(
            f"{where}: expected 3 axes (class, exemplar, dim), got {values.ndim}: shape {list(values.shape)}"
        )
    if values.size == 0:
        raise UserError(f"{where}: it is empty: shape {list(values.shape)}")
    if not np.issubdtype(values.dtype, np.number) or np.issubdtype(values.dtype, np.complexfloating):
        raise UserError(f"{where}: expected real numbers, got type {values.dtype}")
    values = values.astype(np.float32)
    bad = ~np.isfinite(values)
    if bad.any():
        first = [int(index) for index in np.argwhere(bad)[0]]
        raise UserError(
            f"{where}: {int(bad.sum())} of {values.size} numbers are NaN or infinite,"
            f" the first at (class, exemplar, dim) = {first}. Remove or recompute them"
        )
    return values
