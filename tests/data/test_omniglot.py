"""Image features on drawings made here, whose gradients and order are known by construction."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from repro.data.features import load
from repro.data.omniglot import half_whiten, hog, read_images
from repro.data.specs import OmniglotImages, sha256_of
from repro.errors import UserError

SMALL = {"components": 4, "exemplars": 2, "order_seed": None}


def drawing(seed):
    """A few thick black strokes on white, in the archives' format (1 bit)."""
    pixels, random = np.full((105, 105), 255, np.uint8), np.random.default_rng(seed)
    for _ in range(3):
        top, left = random.integers(5, 60, 2)
        height, width = random.permutation([6, random.integers(20, 40)])
        pixels[top : top + height, left : left + width] = 0
    return Image.fromarray(pixels).convert("1")


def write_part(folder, part, characters, drawings=3):
    for character in range(characters):
        place = folder / part / f"Alphabet{character % 2}" / f"character{character:02d}"
        place.mkdir(parents=True)
        for index in range(drawings):
            drawing(1000 * len(part) + 10 * character + index).save(
                place / f"{character:04d}_{index:02d}.png"
            )


@pytest.fixture
def folder(tmp_path):
    write_part(tmp_path, "images_background", 6)
    write_part(tmp_path, "images_evaluation", 4)
    return tmp_path


def zipped(folder, part):
    target = folder / f"{part}.zip"
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted((folder / part).rglob("*.png"), reverse=True):
            archive.write(file, file.relative_to(folder))
    return target


def test_zip_and_folder_give_the_same_images_in_order_of_name(folder):
    images = read_images(folder / "images_background", 2)
    assert images.shape == (6, 2, 105, 105) and images.dtype == bool
    np.testing.assert_array_equal(images, read_images(zipped(folder, "images_background"), 2))
    order = [0, 2, 4, 1, 3, 5]  # two alphabets in turn
    expected = ~np.asarray(drawing(1000 * len("images_background") + 10 * order[1] + 1))
    np.testing.assert_array_equal(images[1, 1], expected)


def test_features_of_both_parts(folder):
    features = load(OmniglotImages(path=str(folder), **SMALL))
    assert features.values.shape == (10, 2, 4) and features.values.dtype == np.float32
    np.testing.assert_allclose((features.values[:6] ** 2).mean(), 1, rtol=1e-5)
    shuffled = load(OmniglotImages(path=str(folder), **{**SMALL, "order_seed": 3}))
    np.testing.assert_array_equal(shuffled.values, features.values[np.random.default_rng(3).permutation(10)])
    assert shuffled.sha256 != features.sha256


def test_evaluation_images_do_not_move_the_projection(folder):
    before = load(OmniglotImages(path=str(folder), **SMALL)).values
    drawing(77).save(folder / "images_evaluation" / "Alphabet0" / "character00" / "0000_00.png")
    after = load(OmniglotImages(path=str(folder), **SMALL)).values
    np.testing.assert_array_equal(before[:6], after[:6])
    assert not np.array_equal(before[6:], after[6:])


def test_rotations_make_eight_classes_of_each_character(folder):
    plain = hog(read_images(folder / "images_background", 2), 35, 7, 8, 1.5)
    turned = hog(np.rot90(read_images(folder / "images_background", 2)[..., ::-1], 1, (2, 3)), 35, 7, 8, 1.5)
    spec = OmniglotImages(path=str(folder), **{**SMALL, "rotations": True})
    values = load(spec).values
    assert values.shape == (80, 2, 4)
    from repro.data.omniglot import _features_of

    features = _features_of(read_images(folder / "images_background", 2), spec)
    np.testing.assert_array_equal(features[0::8], plain)
    np.testing.assert_array_equal(features[3::8], turned)  # 2 * rotation + mirrored


@pytest.mark.parametrize("turns, direction", [(0, 0), (1, 4)])
def test_hog_of_one_straight_edge_is_one_direction(turns, direction):
    image = np.zeros((105, 105), bool)
    image[:, 52:] = True
    histogram = hog(np.rot90(image, turns), 35, 7, 8, 1.5).reshape(5, 5, 8)
    if turns:
        histogram = np.rot90(histogram, -turns)
    others = [index for index in range(8) if index != direction]
    assert histogram[:, 2, direction].min() > 0.3 and histogram[..., others].max() < 1e-3
    np.testing.assert_allclose((histogram**4).sum(), 1, rtol=1e-5)  # L2-normalised before the root


def test_hog_does_not_see_contrast_or_an_empty_image():
    image = np.zeros((2, 105, 105), bool)
    image[0, 30:60, 30:70] = True
    features = hog(np.stack([image[0], ~image[0], image[1]]), 35, 7, 8, 1.5)
    np.testing.assert_allclose(features[0], features[1], atol=2e-3)
    assert (features[2] == 0).all()


@pytest.mark.parametrize("whitening, power", [(0.0, 2.0), (0.25, 1.0), (0.5, 0.0)])
def test_whitening_levels_the_variances_by_its_power(whitening, power):
    random = np.random.default_rng(0)
    rows = (random.standard_normal((4000, 1, 3)) * [4.0, 2.0, 1.0]).astype(np.float32)
    values = half_whiten(rows, [rows], 3, whitening)[:, 0]
    variances = values.var(axis=0)
    np.testing.assert_allclose(variances / variances[2], np.array([4.0, 2.0, 1.0]) ** power, rtol=0.1)
    np.testing.assert_allclose(np.corrcoef(values.T), np.eye(3), atol=1e-3)


def test_bad_trees_are_refused(folder):
    with pytest.raises(UserError, match="Alphabet0/character00 has 3 drawings, got exemplars = 4"):
        load(OmniglotImages(path=str(folder), **{**SMALL, "exemplars": 4}))
    with pytest.raises(UserError, match="no such file or folder"):
        load(OmniglotImages(path=str(folder / "gone"), **SMALL))
    with pytest.raises(UserError, match="no images in .*Expected <alphabet>/<character>"):
        (folder / "empty").mkdir()
        load(OmniglotImages(path=str(folder / "empty"), **SMALL))
    bad = folder / "images_background" / "Alphabet0" / "character00" / "0000_00.png"
    Image.new("1", (28, 28)).save(bad)
    with pytest.raises(UserError, match=r"0000_00.png: expected 105 x 105 pixels, got \(28, 28\)"):
        load(OmniglotImages(path=str(folder), **SMALL))
    bad.write_bytes(b"no image")
    with pytest.raises(UserError, match="cannot be read as an image"):
        load(OmniglotImages(path=str(folder), **SMALL))
    (folder / "cut.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match="cannot read .*cut.zip as a zip archive"):
        load(OmniglotImages(path=str(folder / "cut.zip"), **SMALL))


def test_one_part_alone_is_refused(folder):
    (folder / "images_background").rename(folder / "elsewhere")
    with pytest.raises(UserError, match="only one of the two parts; images_background"):
        load(OmniglotImages(path=str(folder), **SMALL))


REAL = Path(os.environ.get("REPRO_TEST_DATA", "nowhere")) / "omniglot" / "images_background_small1.zip"


@pytest.mark.skipif(
    not REAL.exists(), reason="set REPRO_TEST_DATA to a folder with omniglot/images_background_small1.zip"
)
def test_official_archive_one_shot():
    """20-way one-shot within one archive: far above chance (0.05)."""
    assert sha256_of(REAL) == "f38eb80f801274ac2b4dff5b24289016bfaba4a7d5bb50deebf27104ad6cb8a4"
    values = load(OmniglotImages(path=str(REAL), order_seed=None)).values
    assert values.shape == (136, 5, 128)
    unit, random, right = values / np.linalg.norm(values, axis=2, keepdims=True), np.random.default_rng(0), []
    for _ in range(200):
        classes = random.choice(136, 20, replace=False)
        right.append((unit[classes, 0] @ unit[classes, 1].T).argmax(axis=0) == np.arange(20))
    assert np.mean(right) > 0.5
