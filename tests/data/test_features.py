"""Features come out as they were put in, and every way a file can be wrong has its message."""

import h5py
import numpy as np
import pytest

from repro.data.features import load
from repro.data.specs import PUBLISHED_SHA256, FeaturesFile, Gaussian, NoData, OmniglotFeatures, sha256_of
from repro.errors import UserError

DATASET = "resnet18/224/feat"


def write(path, values, dataset=DATASET):
    with h5py.File(path, "w") as file:
        file[dataset] = values
    return FeaturesFile(path=str(path))


def test_gaussian_is_the_documented_array():
    features = load(Gaussian())
    expected = np.random.default_rng(0).standard_normal((1623, 5, 512)).astype(np.float32)
    np.testing.assert_array_equal(features.values, expected)
    assert features.values.dtype == np.float32 and not features.is_published


def test_gaussian_with_noise_scatters_around_class_means():
    values = load(Gaussian(classes=50, exemplars=40, dim=64, noise=0.3, seed=4)).values
    means = values.mean(axis=1, keepdims=True)
    assert abs((values - means).std() - 0.3) < 0.01 and abs(means.std() - 1) < 0.05


def test_no_data():
    assert load(NoData()) is None


def test_a_file_comes_out_as_it_was_put_in(tmp_path):
    values = np.random.default_rng(1).random((4, 3, 2))
    spec = write(tmp_path / "f.h5", values)
    features = load(spec)
    np.testing.assert_array_equal(features.values, values.astype(np.float32))
    assert features.sha256 == sha256_of(spec.path) and features.kind == "features_file"


def with_nan(shape):
    values = np.zeros(shape)
    values[1, 2, 0], values[1, 2, 1] = np.nan, np.inf
    return values


@pytest.mark.parametrize(
    "values, message",
    [
        (np.zeros((4, 3)), r"expected 3 axes \(class, exemplar, dim\), got 2: shape \[4, 3\]"),
        (np.zeros((4, 0, 3)), r"it is empty: shape \[4, 0, 3\]"),
        (with_nan((4, 3, 2)), r"2 of 24 numbers are NaN or infinite, the first at .* = \[1, 2, 0\]"),
        (np.zeros((2, 2, 2), "S1"), "expected real numbers"),
    ],
)
def test_unusable_arrays_are_refused(tmp_path, values, message):
    with pytest.raises(UserError, match=message):
        load(write(tmp_path / "f.h5", values))


def test_a_missing_dataset_lists_those_there_are(tmp_path):
    spec = write(tmp_path / "f.h5", np.zeros((4, 3, 2)), "other/feat")
    with pytest.raises(
        UserError, match=r"no dataset 'resnet18/224/feat'.*other/feat \[4, 3, 2\].*data.dataset=NAME"
    ):
        load(spec)
    with pytest.raises(UserError, match="no dataset 'other'"):
        load(spec.model_copy(update={"dataset": "other"}))
    assert load(spec.model_copy(update={"dataset": "other/feat"})).values.shape == (4, 3, 2)


@pytest.mark.parametrize("kind", [FeaturesFile, OmniglotFeatures])
def test_a_missing_file_is_named(tmp_path, kind):
    with pytest.raises(UserError, match="no such file: .*gone.h5"):
        load(kind(path=str(tmp_path / "gone.h5")))


@pytest.mark.parametrize("content", [b"", b"not HDF5 at all", "cut"])
def test_a_file_that_is_not_hdf5_is_refused(tmp_path, content):
    path = tmp_path / "f.h5"
    if content == "cut":
        write(path, np.zeros((40, 30, 20)))
        content = path.read_bytes()[:2000]
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as HDF5"):
        load(FeaturesFile(path=str(path)))


def test_another_file_in_place_of_the_published_one_needs_consent(tmp_path):
    path = tmp_path / "f.h5"
    write(path, np.ones((4, 3, 2)))
    checksum = sha256_of(path)
    with pytest.raises(UserError) as error:
        load(OmniglotFeatures(path=str(path)))
    message = str(error.value)
    assert PUBLISHED_SHA256 in message and "16,638,016 bytes" in message
    assert f"{path.stat().st_size:,} bytes" in message and f"data.accept_checksum={checksum}" in message
    features = load(OmniglotFeatures(path=str(path), accept_checksum=checksum))
    assert features.values.shape == (4, 3, 2) and not features.is_published
