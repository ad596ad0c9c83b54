"""How many features there will be, before any are loaded: (classes, exemplars, dimension)."""

from __future__ import annotations

from pathlib import Path

from repro.data.specs import (
    OMNIGLOT_URL,
    PUBLISHED_SHA256,
    Data,
    FeaturesFile,
    Gaussian,
    OmniglotFeatures,
    OmniglotImages,
)
from repro.errors import UserError

PUBLISHED = (1623, 5, 512)
CHARACTERS, TURNS = 1623, 8


def features_size(data: Data | None) -> tuple[int, int, int] | None:
    """Of a choice of data; None where only loading it would tell."""
    if isinstance(data, Gaussian):
        return data.classes, data.exemplars, data.dim
    if isinstance(data, OmniglotFeatures) and (data.accept_checksum or data.sha256) == PUBLISHED_SHA256:
        return PUBLISHED
    if isinstance(data, OmniglotImages) and data.path is None and data.url == OMNIGLOT_URL:
        return CHARACTERS * (TURNS if data.rotations else 1), data.exemplars, data.components
    path = getattr(data, "path", None)
    if isinstance(data, FeaturesFile | OmniglotFeatures) and path:
        return _of_file(Path(path).expanduser(), data.dataset)
    return None


def _of_file(path: Path, dataset: str) -> tuple[int, int, int]:
    import h5py

    try:
        with h5py.File(path) as file:
            classes, exemplars, dimension = file[dataset].shape  # type: ignore[union-attr]
            return int(classes), int(exemplars), int(dimension)
    except (OSError, KeyError, ValueError, AttributeError) as error:
        raise UserError(
            f"data.path: {path}: no (class, exemplar, dim) dataset {dataset!r}: {error}"
        ) from None
