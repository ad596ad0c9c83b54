from __future__ import annotations

from pathlib import Path

import pytest

from repro import config, identity, root_specs
from repro.config_values import command_line_wins
from repro.errors import UserError

RUN = "paper/invented=first"


def refused(project: Path, *overrides: str, multirun: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        config.compose_all(overrides, multirun, project)
    return str(caught.value)


def test_a_run_has_its_own_directory(project: Path) -> None:
    one = config.compose([RUN], project)
    assert (one.slug, one.experiment) == ("invented", "first")
    assert len(one.hash) == 12
    assert one.directory == project / "runs" / "invented" / "first" / one.hash
    assert one.values["analysis"]["iterations"] == 3
    assert one.values["analysis"]["dimension"] == 20  # a default that no file mentions


def test_saved_config_is_read_back_without_hydra(project: Path) -> None:
    one = config.compose([RUN, "seed=3"], project)
    one.directory.mkdir(parents=True)
    (one.directory / "config.json").write_text(one.to_json())
    assert config.load(one.directory) == one
    with pytest.raises(UserError, match="config.json cannot be read"):
        config.load(project)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["paper/invented=frist"], "did you mean 'first'?). Valid choices: first, second"),
        (["paper/inventd=first"], "did you mean 'paper/invented'?"),
        (["paper=invented/first"], "did you mean 'paper/invented'?"),
        ([], "exactly one paper a run, got none"),
        (
            [RUN, "paper/seeded=first"],
            "exactly one paper a run, got paper/invented=first and paper/seeded=first",
        ),
        ([RUN, "data=gausian"], "did you mean 'gaussian'?"),
        ([RUN, "hardware=slurm_a10"], "did you mean 'slurm_a100'?"),
        ([RUN, "data=null"], "Valid choices: "),
        ([RUN, "sede=3"], "did you mean 'seed'?"),
        ([RUN, "+new.thing=3"], "new.thing: unknown key"),
        ([RUN, "analysis.iteratoins=3"], "did you mean 'iterations'?"),
        ([RUN, "analysis.iterations=many"], "analysis.iterations"),
        ([RUN, "analysis.iterations=-1"], "analysis.iterations"),
        ([RUN, "hardware.executor=cloud"], "hardware.executor"),
        ([RUN, "hardware.gpus=1.5"], "hardware.gpus"),
        ([RUN, "tracking.mode=of"], "tracking.mode"),
        ([RUN, "rerun=maybe"], "rerun: expected true or false"),
        ([RUN, "runs_dir=3"], "runs_dir: expected a folder"),
        ([RUN, "manipulations=ablate"], "manipulations: expected a list"),
        ([RUN, "analysis.iterations=???"], "analysis.iterations"),
        ([RUN, "analysis.iterations=${nowhere.at_all}"], "analysis.iterations: Interpolation key"),
        ([RUN, "analysis.report_at=[1"], "[1"),
        ([RUN, "seed=0,1"], "several values need -m"),
        ([RUN, "~analysis"], "analysis"),
        ([RUN, "data.path=${oc.env:NO_SUCH_VARIABLE}"], "NO_SUCH_VARIABLE"),
    ],
)
def test_a_mistake_is_one_clear_message(project: Path, overrides: list[str], expected: str) -> None:
    message = refused(project, *overrides)
    assert expected in message
    assert "Traceback" not in message and "struct" not in message and "provider=" not in message


@pytest.mark.parametrize("key", ["tracking.api_key", "tracking.key", "+wandb.token", "data.password"])
def test_secrets_are_refused_as_overrides(project: Path, key: str) -> None:
    message = refused(project, RUN, f"{key}=abc123")
    assert "secret" in message and "abc123" not in message


def test_secrets_of_the_environment_are_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "0123456789abcdef")
    message = refused(project, RUN, "tracking.project=${oc.env:SOME_API_KEY}")
    assert "$SOME_API_KEY" in message and "0123456789abcdef" not in message


def test_hash_does_not_depend_on_how_a_value_is_written(project: Path) -> None:
    hashes = {
        config.compose([RUN, f"analysis.learning_rate={rate}"], project).hash
        for rate in ("0.1", "1e-1", ".1")
    }
    assert len(hashes) == 1
    assert hashes == {config.compose([RUN], project).hash}  # the file says 0.1, too
    assert config.compose([RUN, "analysis.learning_rate=0.2"], project).hash not in hashes


@pytest.mark.parametrize(
    "override",
    [
        *("hardware=local", "hardware=slurm_a100", "tracking=offline", "runs_dir=elsewhere", "rerun=true"),
        *("verbose=true", "dry_run=true", "wait=false", "paper.title=Another", "analysis.dimension=20"),
    ],
)
def test_what_cannot_change_a_number_does_not_change_the_hash(project: Path, override: str) -> None:
    assert config.compose([RUN, override], project).hash == config.compose([RUN], project).hash


@pytest.mark.parametrize(
    "override", ["seed=1", "analysis.iterations=4", "data=gaussian", "analysis.report_at=[1]"]
)
def test_what_can_change_a_number_changes_the_hash(project: Path, override: str) -> None:
    assert config.compose([RUN, override], project).hash != config.compose([RUN], project).hash


def test_files_count_by_content(project: Path) -> None:
    def hash_with(name: str, content: bytes) -> str:
        (project / name).write_bytes(content)
        return config.compose([RUN, "data=features_file", f"data.path={name}"], project).hash

    assert hash_with("a.h5", b"one") == hash_with("b.h5", b"one")
    assert hash_with("a.h5", b"one") != hash_with("a.h5", b"two")


def test_a_file_is_named_from_the_root_in_the_saved_config(project: Path) -> None:
    (project / "a.h5").write_bytes(b"one")
    values = config.compose([RUN, "data=features_file", "data.path=a.h5"], project).values
    assert values["data"]["path"] == str(project / "a.h5")


def test_a_missing_file_is_refused(project: Path) -> None:
    assert "no such file" in refused(project, RUN, "data=features_file", "data.path=nowhere.h5")


def test_checksum_of_a_folder_covers_names_and_contents(tmp_path: Path) -> None:
    folders = {"x": ("f", "1"), "same": ("f", "1"), "name": ("g", "1"), "content": ("f", "2")}
    sums = {}
    for folder, (name, content) in folders.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(content)
        sums[folder] = identity.checksum(tmp_path / folder, "model.path")
    assert sums["x"] == sums["same"]
    assert len({sums["x"], sums["name"], sums["content"]}) == 3
    with pytest.raises(UserError, match="model.path: no such file"):
        identity.checksum(tmp_path / "none", "model.path")


def test_digest_is_sha256_of_sorted_compact_json() -> None:
    # printf '{"a":[1,0.1],"b":null}' | sha256sum
    import hashlib

    expected = hashlib.sha256(b'{"a":[1,0.1],"b":null}').hexdigest()[:12]
    assert identity.digest({"b": None, "a": [1, 0.1]}) == expected


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (None, {"init": 5, "train": 0, "eval": 1}),
        ("seed=0", {"init": 5, "train": 0, "eval": 1}),
        ("seed=4", {"init": 9, "train": 0, "eval": 1}),
        ("seed.init=7", {"init": 7, "train": 0, "eval": 1}),
        ("seed.eval=3", {"init": 5, "train": 0, "eval": 3}),
    ],
)
def test_published_seeds_are_shifted_or_replaced(project: Path, override: str | None, expected: dict) -> None:
    overrides = ["paper/seeded=first", *([override] if override else [])]
    assert config.compose(overrides, project).values["seed"] == expected


def test_one_integer_where_no_seeds_are_published(project: Path) -> None:
    assert config.compose([RUN, "seed=3"], project).values["seed"] == 3


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["paper/seeded=first", "seed.train=5"], "init, train and eval must differ"),
        (["paper/seeded=first", "seed=-4"], "init, train and eval must differ"),  # init becomes 1, as eval is
        (["paper/seeded=first", "seed.initial=5"], "did you mean 'init'?"),
        (["paper/seeded=first", "seed=one"], "seed: expected an integer"),
        ([RUN, "seed.init=5"], "seed: expected one integer"),
        ([RUN, "seed=-1"], "seed: expected one integer"),
    ],
)
def test_impossible_seeds_are_refused(project: Path, overrides: list[str], expected: str) -> None:
    assert expected in refused(project, *overrides)


def test_repeats_differ_in_hash_and_share_the_family(project: Path) -> None:
    runs = config.compose_all(["paper/seeded=first", "seed=0,1,2"], True, project)
    assert [run.values["seed"]["init"] for run in runs] == [5, 6, 7]
    assert len({run.hash for run in runs}) == 3
    assert len({run.family for run in runs}) == 1
    other = config.compose(["paper/seeded=first", "analysis.iterations=4"], project)
    assert other.family != runs[0].family


def test_a_glob_names_every_experiment_but_those_left_out(project: Path) -> None:
    runs = config.compose_all(["paper/invented=glob(*,exclude=[base])", "seed=range(0,2)"], True, project)
    assert [(run.experiment, run.values["seed"]) for run in runs] == [
        ("first", 0), ("first", 1), ("second", 0), ("second", 1),
    ]  # fmt: skip
    message = refused(project, "paper/invented=glob(nothing*)", multirun=True)
    assert "Valid choices: first, second" in message


def test_the_command_line_wins_over_the_experiment_and_that_over_its_base(project: Path) -> None:
    assert config.compose(["paper/invented=first"], project).values["data"]["kind"] == "none"
    assert config.compose(["paper/invented=second"], project).values["data"]["kind"] == "gaussian"
    chosen = config.compose(["paper/invented=second", "data=none", "analysis.iterations=9"], project)
    assert chosen.values["data"]["kind"] == "none"
    assert chosen.values["analysis"]["iterations"] == 9
    assert chosen.choices is not None and chosen.choices["data"] == "none"


def test_conditions_are_merged_at_every_depth() -> None:
    values = {"training": {"batch": 32, "every": 64}, "seed": {"init": 5}, "manipulations": [1]}
    condition = {"training": {"every": None}, "seed": {}, "manipulations": None, "model": {"depth": 1}}
    merged = root_specs.condition_values(values, condition)
    assert merged == {**values, "training": {"batch": 32, "every": None}, "model": {"depth": 1}}
    assert values["training"]["every"] == 64
    assert root_specs.condition_values(values, {"manipulations": []})["manipulations"] == []


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (
            "{training: {sequnces: 5}}",
            "conditions.a.training.sequnces: unknown key (did you",
        ),
        ("{training: {sequences: 5}}", "at least one batch"),
        ("{trainin: {}}", "conditions.a.trainin: unknown key (did you mean 'training'?)"),
        ("{seed: {train: 5}}", "init, train and eval must differ"),
        ("{seed: {initial: 5}}", "conditions.a.seed.initial"),
        ("ablate", "conditions.a: expected a mapping"),
    ],
)
def test_conditions_are_checked_with_what_they_are_merged_into(
    project: Path, condition: str, expected: str
) -> None:
    run = ["paper/seeded=first", "training={sequences: 640}"]
    assert expected in refused(project, *run, f"conditions={{a: {condition}}}")
    good = config.compose([*run, "conditions={a: {training: {sequences: 96}, seed: {init: 7}}}"], project)
    assert good.hash != config.compose(run, project).hash


def test_a_file_of_the_wrong_paper_is_refused(project: Path) -> None:
    base = project / "conf" / "paper" / "invented" / "base.yaml"
    base.write_text(base.read_text().replace("slug: invented", "slug: seeded"))
    assert "paper.slug" in refused(project, RUN)


def test_broken_yaml_is_one_message(project: Path) -> None:
    (project / "conf" / "data" / "gaussian.yaml").write_text("kind: [\n")
    assert "YAML" in refused(project, RUN, "data=gaussian")


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("paper.title='one, two: three = 3'", "one, two: three = 3"),
        ('paper.title="it\'s"', "it's"),
        ("paper.title=plain words (here)", None),
        ("paper.title=a/b-c.d", "a/b-c.d"),
    ],
)
def test_values_with_signs_in_them_arrive_unchanged(project: Path, override: str, value: str | None) -> None:
    if value is None:
        assert "cannot be read as KEY=VALUE" in refused(project, RUN, override)
    else:
        assert config.compose([RUN, override], project).values["paper"]["title"] == value


def test_lists_of_mappings_arrive_unchanged(project: Path) -> None:
    override = "tracking.tags=[a, 'b, c', \"d: e\"]"
    assert config.compose([RUN, override], project).values["tracking"]["tags"] == ["a", "b, c", "d: e"]


def test_only_overrides_that_change_the_experiment_count_as_changes(project: Path) -> None:
    same = ["seed=1", "runs_dir=somewhere", "tracking.tags=[a]", "hardware.timeout_min=5"]
    assert config.compose([RUN, *same], project).changed == []
    assert config.compose([RUN, *same, "analysis.learning_rate=0.2"], project).changed == [
        "analysis.learning_rate=0.2"
    ]


def test_the_runs_of_a_sweep_share_a_tag_and_keep_their_hashes(project: Path) -> None:
    configs = config.compose_all([RUN, "seed=0,1"], multirun=True, root=project)
    tagged = config.tag_sweep(configs)
    tags = {tuple(item.values["tracking"]["tags"]) for item in tagged}
    assert len(tags) == 1 and next(iter(tags))[-1].startswith("sweep-")
    assert [item.hash for item in tagged] == [item.hash for item in configs]
    assert config.tag_sweep(configs[:1]) == configs[:1]


def test_training_settings_of_the_command_line_hold_for_every_condition() -> None:
    values = {
        "conditions": {
            "a": {"training": {"sequences": 64, "batch": 8}},
            "b": {"manipulations": []},
            "c": None,
        }
    }
    command_line_wins(values, ["training.sequences=32", "seed=1", "training=null"])
    assert values["conditions"]["a"] == {"training": {"batch": 8}}
    assert values["conditions"]["b"] == {"manipulations": []}
