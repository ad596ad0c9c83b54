"""Results on disk: what was saved comes back, and nothing saved before is lost."""

import errno
import json
import math
import os
import subprocess

import numpy as np
import pytest

from repro import results
from repro.errors import UserError
from repro.results import NamedArray, Result, load, save, write_atomic


def some_result() -> Result:
    return Result(
        scalars={"loss": 0.25, "never": math.nan, "up": math.inf, "down": -math.inf},
        arrays={
            "match.eval_fsl_train_loss": NamedArray(
                np.arange(6.0).reshape(2, 3), {"seed": 2, "set": ["a", "b", "c"]}, "nat"
            ),
            "file": NamedArray(np.array(["x", "yy"]), {"token": 2}),
            "step": NamedArray(np.int64(7), {}),
        },
        notes={"data": "gaussian"},
    )


def test_round_trip(tmp_path):
    save(tmp_path, some_result())
    back = load(tmp_path)
    assert back.scalars["loss"] == 0.25
    assert math.isnan(back.scalars["never"])
    assert (back.scalars["up"], back.scalars["down"]) == (math.inf, -math.inf)
    assert back.notes == {"data": "gaussian"}
    array = back.arrays["match.eval_fsl_train_loss"]
    assert (array.unit, array.axes) == ("nat", {"seed": 2, "set": ["a", "b", "c"]})
    np.testing.assert_array_equal(array.values, [[0, 1, 2], [3, 4, 5]])
    assert list(back.arrays["file"].values) == ["x", "yy"]
    assert back.arrays["step"].values.shape == ()
    assert back.arrays["step"].values == 7


def test_files_are_strict_json_and_plain_npz(tmp_path):
    save(tmp_path, some_result())
    text = (tmp_path / "scalars.json").read_text()
    assert "NaN" not in text and json.loads(text)["never"] is None
    manifest = json.loads((tmp_path / "arrays.json").read_text())
    assert manifest["match.eval_fsl_train_loss"] == {
        "unit": "nat",
        "axes": {"seed": 2, "set": ["a", "b", "c"]},
    }
    with np.load(tmp_path / "arrays.npz", allow_pickle=False) as archive:
        assert sorted(archive.files) == sorted(manifest)
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("axes", [{"a": 3}, {"a": 2, "b": 2}, {"a": 2, "b": ["x"]}, {"b": 3, "a": 2}])
def test_axes_must_fit_the_shape(axes):
    with pytest.raises(ValueError, match=r"shape \(2, 3\)"):
        NamedArray(np.zeros((2, 3)), axes)


@pytest.mark.parametrize("extent", ["ab", True, [None, None], [(0, 1), (1, 2)]])
def test_labels_are_texts_or_numbers(extent):
    with pytest.raises(ValueError, match="texts or numbers"):
        NamedArray(np.zeros(2), {"a": extent})


def test_objects_are_refused_because_they_need_pickle():
    with pytest.raises(ValueError, match="pickle"):
        NamedArray(np.array([{}], dtype=object), {"a": 1})


def test_scalars_are_single_numbers():
    assert Result({"n": np.float32(2)}).scalars == {"n": 2.0}
    with pytest.raises(ValueError, match="one number"):
        Result({"n": np.zeros(2)})
    with pytest.raises(ValueError, match="no name"):
        Result({"a/b": 1.0})


def test_select_by_label():
    array = NamedArray(np.arange(6).reshape(2, 3), {"layer": [4, 5], "set": ["a", "b", "c"]})
    assert array.select(layer=5, set="b").values == 4
    row = array.select(set="c")
    assert list(row.values) == [2, 5] and row.axes == {"layer": [4, 5]}
    with pytest.raises(ValueError, match="Labels: a, b, c"):
        array.select(set="z")
    with pytest.raises(ValueError, match="Axes: layer, set"):
        array.select(head=0)


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "scalars.json"
    write_atomic(target, "old")

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(results.os, "fsync", full)
    with pytest.raises(UserError, match="No space left.*Nothing already saved was lost"):
        write_atomic(target, "new")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["scalars.json"]


def test_a_writer_that_fails_leaves_the_old_file(tmp_path):
    target = tmp_path / "a"
    write_atomic(target, b"old")

    def broken(file):
        file.write(b"half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_atomic(target, broken)
    assert target.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_really_full_disk(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], capture_output=True
    ).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        save(disk, Result({"loss": 1.0}))
        big = NamedArray(np.random.default_rng(0).random(100_000), {"step": 100_000})
        with pytest.raises(UserError, match="Nothing already saved was lost"):
            save(disk, Result({"loss": 2.0}, {"big": big}))
        assert load(disk).scalars == {"loss": 1.0}
        assert not list(disk.glob(".*.tmp"))
    finally:
        subprocess.run(["umount", disk], check=True)


def test_damaged_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"scalars.json is missing.*rerun=true"):
        load(tmp_path)
    save(tmp_path, some_result())
    (tmp_path / "arrays.npz").write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"arrays.npz cannot be read"):
        load(tmp_path)
