"""Impossible data and sequences are refused with the key, what came and what is valid."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from repro.data.specs import (
    OMNIGLOT_SHA256,
    PUBLISHED_SHA256,
    Data,
    FeaturesFile,
    Gaussian,
    OmniglotFeatures,
    OmniglotImages,
    Sequences,
    sha256_of,
)
from repro.errors import UserError

CONF = Path(__file__).parents[2] / "conf" / "data"
WITHOUT_PATH = ("known_1000", "omniglot_features", "omniglot_images")  # they download what is not given


@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_config_file_is_a_valid_choice(file):
    mapping = yaml.safe_load(file.read_text().replace("${seed}", "0"))
    for name in mapping.pop("defaults", []):
        mapping = {**yaml.safe_load((CONF / f"{name}.yaml").read_text()), **mapping}
    if mapping.get("path", "") is None and mapping["kind"] not in WITHOUT_PATH:
        mapping["path"] = "given.h5"
    if mapping["kind"] == "lm_eval_tasks":
        mapping["tasks"] = ["given"]
    assert Data.choose(mapping, "data").kind == mapping["kind"]


def test_config_files_say_the_defaults():
    for name in ("gaussian", "omniglot_images", "omniglot_features"):
        mapping = yaml.safe_load((CONF / f"{name}.yaml").read_text())
        assert Data.choose(mapping, "data") == Data.choose({"kind": name}, "data")


def test_nothing_heavy_is_imported():
    heavy = "{'jax', 'h5py', 'sklearn', 'skimage', 'numpy'}"
    code = f"import sys, repro.data.specs; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CONF.parents[1])
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize(
    "options, message",
    [
        ({"train": [{"burstiness": 2}]}, r"train\[0\].burstiness.*context of 4 items, got 2. Valid: 0..1"),
        (
            {"train": [{"burstiness": 3, "distractor": False}]},
            r"need a context of 3 items, got 2. Valid: 0..2",
        ),
        ({"evaluate": {"a": {"burstiness": 2}}}, r"evaluate.a.burstiness"),
        ({"context": 8, "evaluate": {"a": {"burstiness": 2, "context": 3}}}, r"evaluate.a.burstiness.*got 3"),
        ({"labels": 1}, "at least 2 labels, got 1"),
        ({"labels": 0, "label_pair_split": [8, 2, 0]}, "with labels: 0 there are no pairs"),
        ({"label_pair_split": [0, 2, 0]}, "ratio for training must be positive"),
        ({"evaluate": {"a": {"relabel": "val"}}}, "no label pairs are held out for 'val'"),
        ({"labels": 0, "evaluate": {"a": {"relabel": "all"}}}, "needs label pairs, and labels is 0"),
        ({"evaluate": {"a": {"relabel": "flip", "burstiness": 0}}}, "flip exchanges"),
        ({"evaluate": {"a": {"relabel": "flip", "distractor": False}}}, "flip exchanges"),
        ({"evaluate": {"a": {"relabel": "swap"}}}, "evaluate.a.relabel: Input should be 'train'.*got 'swap'"),
        (
            {"evaluate": {"a": {"classes": "test"}}, "class_split": [9, "rest", 0]},
            "a.classes.*Valid choices: train, val",
        ),
        ({"evaluate": {"a": {"exemplars": "test"}}}, "a.exemplars: 'test' has no exemplars"),
        ({"evaluate": {"train_iter": {}}}, "evaluate.train_iter: not a valid name"),
        ({"evaluate": {"a/b": {}}}, "not a valid name"),
        ({"class_split": ["rest", "rest", 1]}, "at most one of them the word rest"),
        ({"class_split": [5, -1, "rest"]}, "three numbers >= 0"),
        ({"exemplar_split": [0, 5, 0]}, "nothing is left for training"),
        ({"train": []}, "at least one sampler"),
        ({"train": [{"weight": 0}]}, "train.0.weight"),
        ({"evaluate": {"a": {"clases": "train"}}}, "a.clases: unknown key .did you mean 'classes'"),
    ],
)
def test_impossible_sequences_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Sequences.parse(options, "sequences")


def test_pair_counts_round_down_and_training_takes_the_rest():
    counts = Sequences.parse({"labels": 5, "label_pair_split": [1, 1, 1]}, "sequences").pair_counts()
    assert counts == {"train": 4, "val": 3, "test": 3}


@pytest.mark.parametrize(
    "mapping, message",
    [
        ({"kind": "features_file"}, "a file is required.*data.path=FILE.h5"),
        ({"kind": "features_file", "path": None}, "a file is required"),
        ({"kind": "gausian"}, "did you mean 'gaussian'"),
        ({"kind": "gaussian", "classes": 0}, "data.classes"),
        ({"kind": "omniglot_features", "accept_checksum": "abc"}, "64 hexadecimal digits"),
        ({"kind": "omniglot_images", "size": 36}, "size must divide 105"),
        ({"kind": "omniglot_images", "components": 201}, "at most the number of HOG features, 200"),
    ],
)
def test_impossible_data_is_refused(mapping, message):
    with pytest.raises(UserError, match=message):
        Data.choose(mapping, "data")


def test_fingerprint_tells_contents_not_places(tmp_path):
    for name in ("one.h5", "two.h5", "other.h5"):
        (tmp_path / name).write_bytes(b"other" if name == "other.h5" else b"same")
    one, two, other = (
        FeaturesFile(path=str(tmp_path / name)).fingerprint() for name in ("one.h5", "two.h5", "other.h5")
    )
    assert one == two != other
    assert one["sha256"] == sha256_of(tmp_path / "one.h5") and "path" not in one
    assert OmniglotFeatures().fingerprint() == OmniglotFeatures(cache="elsewhere", url="mirror").fingerprint()
    assert OmniglotFeatures().fingerprint()["sha256"] == PUBLISHED_SHA256
    assert OmniglotImages().fingerprint()["sha256"] == OMNIGLOT_SHA256
    assert Gaussian(seed=1).fingerprint() != Gaussian().fingerprint()


def test_fingerprint_of_a_folder_sees_names_and_contents(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    before = sha256_of(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    renamed = sha256_of(tmp_path)
    (tmp_path / "b").write_bytes(b"2")
    assert len({before, renamed, sha256_of(tmp_path)}) == 3


def test_fingerprint_of_a_missing_file():
    with pytest.raises(UserError, match="no such file"):
        FeaturesFile(path="nowhere.h5").fingerprint()
