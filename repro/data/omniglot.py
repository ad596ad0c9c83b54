"""Features of raw Omniglot images without pretrained weights: block mean, blur, HOG, PCA.

Images lie as the official archives have them: `.../<alphabet>/<character>/<drawing>.png`, 105 x 105,
ink black. Alphabets, characters and drawings are taken in order of name.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32
from PIL import Image
from scipy.ndimage import gaussian_filter

from repro.data.download import download
from repro.data.features import Features, check, computed
from repro.data.specs import OmniglotImages
from repro.errors import UserError

PIXELS = 105
PARTS = ("images_background", "images_evaluation")
Images = Bool[np.ndarray, "class exemplar 105 105"]


def load(spec: OmniglotImages) -> Features:
    """Half-whitened PCA of HOG features; the PCA sees background images only.

    Scaled to a mean square of 1 per feature over the background classes, like i.i.d. N(0, 1)
    features, so that the same learning rate fits. Raises `UserError` for missing or odd images.
    """
    parts = [_features_of(read_images(path, spec.exemplars), spec) for path in _places(spec)]
    values = half_whiten(parts[0], parts, spec.components, spec.whitening)
    if spec.order_seed is not None:
        values = values[np.random.default_rng(spec.order_seed).permutation(len(values))]
    source = f"HOG and PCA of {spec.path or spec.url}, {spec.exemplars} drawings a character"
    return computed(check(values, f"data.path: {spec.path}"), source, spec.kind)


def _places(spec: OmniglotImages) -> list[Path]:
    """The archives or folders to read, background first."""
    if spec.path is None:
        names = [f"{part}.zip" for part in PARTS]
        return [download(spec.url + name, spec.sha256[name], spec.cache) for name in names]
    path = Path(spec.path).expanduser()
    if not path.exists():
        raise UserError(f"data.path: no such file or folder: {path.absolute()}")
    found = [[place for place in (path / part, path / f"{part}.zip") if place.exists()] for part in PARTS]
    if not any(found):
        return [path]
    if not all(found):
        missing = PARTS[0] if not found[0] else PARTS[1]
        raise UserError(
            f"data.path: {path} has only one of the two parts; {missing} (folder or .zip) is missing"
        )
    return [places[0] for places in found]


def read_images(path: Path, exemplars: int) -> Images:
    """The first `exemplars` drawings of every character at `path`, a zip or a folder. True is ink."""
    characters: dict[tuple[str, ...], list[tuple[str, Callable[[], bytes]]]] = {}
    for parts, read in _pngs(path):
        if len(parts) >= 3:
            characters.setdefault(parts[:-1], []).append((parts[-1], read))
    if not characters:
        raise UserError(
            f"data.path: no images in {path}. Expected <alphabet>/<character>/<drawing>.png in it"
        )
    rows = []
    for folders, drawings in sorted(characters.items(), key=lambda item: item[0]):
        where = f"{path}: {'/'.join(folders)}"
        if len(drawings) < exemplars:
            raise UserError(
                f"data.exemplars: {where} has {len(drawings)} drawings, got exemplars = {exemplars}"
            )
        rows.append(
            [
                _decode(read(), f"{where}/{name}")
                for name, read in sorted(drawings, key=lambda item: item[0])[:exemplars]
            ]
        )
    return np.array(rows)


def _pngs(path: Path) -> Iterator[tuple[tuple[str, ...], Callable[[], bytes]]]:
    """The parts of the name of every PNG, and what reads it."""
    if path.is_dir():
        for file in path.rglob("*.png"):
            yield file.relative_to(path.parent).parts, file.read_bytes
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(".png") and not name.startswith("__MACOSX"):
                    content = archive.read(name)
                    yield tuple(name.split("/")), lambda content=content: content
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"data.path: cannot read {path} as a zip archive: {error}") from None


def _decode(content: bytes, where: str) -> Bool[np.ndarray, "105 105"]:
    try:
        image = np.asarray(Image.open(io.BytesIO(content)).convert("L"))
    except OSError as error:
        raise UserError(f"data.path: {where} cannot be read as an image: {error}") from None
    if image.shape != (PIXELS, PIXELS):
        raise UserError(f"data.path: {where}: expected {PIXELS} x {PIXELS} pixels, got {image.shape}")
    return image < 128


def _features_of(images: Images, spec: OmniglotImages) -> Float32[np.ndarray, "class exemplar feature"]:
    """HOG of every drawing; with rotations, eight classes follow each other for each character."""
    versions = [images]
    if spec.rotations:
        mirrored = images[..., ::-1]
        versions = [np.rot90(kind, turns, (2, 3)) for turns in range(4) for kind in (images, mirrored)]
    features = np.stack([hog(each, spec.size, spec.cell, spec.bins, spec.blur) for each in versions], axis=1)
    return features.reshape(-1, *features.shape[2:])


def hog(
    images: Bool[np.ndarray, "... 105 105"], size: int, cell: int, bins: int, blur: float
) -> Float32[np.ndarray, "... feature"]:
    """Histograms of oriented gradients: one of `bins` unsigned directions for each cell x cell square.

    Images are averaged to size x size and blurred by a Gaussian of `blur` pixels; each gradient is
    shared by its two nearest directions. Square root of the L2-normalised histograms.
    """
    flat = images.reshape(-1, PIXELS, PIXELS)
    rows = [_hog_of(flat[i : i + 1024], size, cell, bins, blur) for i in range(0, len(flat), 1024)]
    return np.concatenate(rows).reshape(*images.shape[:-2], -1)


def _hog_of(
    images: Bool[np.ndarray, "image 105 105"], size: int, cell: int, bins: int, blur: float
) -> Float32[np.ndarray, "image feature"]:
    block, cells = PIXELS // size, size // cell
    small = images.reshape(-1, size, block, size, block).mean(axis=(2, 4), dtype=np.float32)
    down, right = np.gradient(gaussian_filter(small, (0, blur, blur)), axis=(1, 2))
    strength = np.hypot(down, right)
    direction = np.arctan2(down, right) % np.pi * (bins / np.pi)
    lower = np.floor(direction)
    upper_share = direction - lower
    histogram = np.empty((len(images), cells, cells, bins), np.float32)
    for index in range(bins):
        share = (lower % bins == index) * (1 - upper_share) + ((lower + 1) % bins == index) * upper_share
        histogram[..., index] = (share * strength).reshape(-1, cells, cell, cells, cell).sum(axis=(2, 4))
    flat = histogram.reshape(len(images), -1)
    norm = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.sqrt(flat / np.maximum(norm, 1e-12))


def half_whiten(
    fitted_on: Float32[np.ndarray, "class exemplar feature"],
    parts: list[Float32[np.ndarray, "class exemplar feature"]],
    components: int,
    whitening: float,
) -> Float32[np.ndarray, "class exemplar component"]:
    """Principal components of `fitted_on`, applied to all `parts`, each divided by eigenvalue^whitening.

    Scaled to a mean square of 1 over `fitted_on`. Signs: the largest loading of each is positive.
    """
    rows = fitted_on.reshape(-1, fitted_on.shape[-1]).astype(np.float64)
    if len(rows) <= components:
        raise UserError(f"data.components: {components} need more than {len(rows)} images")
    mean = rows.mean(axis=0)
    variances, directions = np.linalg.eigh(np.cov(rows, rowvar=False))
    variances, directions = variances[::-1][:components], directions[:, ::-1][:, :components]
    directions = directions * np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(components)])
    projection = directions / np.maximum(variances, 1e-12) ** whitening
    projection /= np.sqrt((((rows - mean) @ projection) ** 2).mean())
    return np.concatenate([(part - mean) @ projection for part in parts]).astype(np.float32)
