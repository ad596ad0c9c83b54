"""Tasks of lm-evaluation-harness with their documents: its own, the user's YAML, or rows of the user's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from repro.data.few_shot_sources import lines
from repro.data.lm_eval_specs import LmEvalTasks
from repro.errors import UserError


def loaded(spec: LmEvalTasks) -> dict[str, Any]:
    """lm-eval's tasks by name. Groups and tags stand for their tasks.

    Raises `UserError` for a name that lm-eval does not know, documents that cannot be had, and tasks that are
    not judged by likelihoods of choices.
    """
    from lm_eval.tasks import TaskManager  # type: ignore[import-not-found]

    given = [Path(place).expanduser() for place in spec.include]
    folders: list[str | Path] = [one if one.is_dir() else one.parent for one in given]
    manager = TaskManager(include_path=folders, include_defaults=not folders)
    if any(name not in manager.task_index for name in spec.names):
        manager = TaskManager(include_path=folders)  # its own tasks are many: seconds
    tasks: dict[str, Any] = {}
    for name in spec.names:
        tasks |= _loaded(spec, manager, name)
    return tasks


def _loaded(spec: LmEvalTasks, manager: Any, name: str) -> dict[str, Any]:
    """A task by name, or those of a group or tag."""
    if name not in manager.task_index:
        raise UserError(
            f"data.tasks: lm-eval knows no task {name}. `lm-eval ls tasks` lists its own; your own are found"
            " in data.include=FOLDER_OF_YAML"
        )
    files = None if spec.folder is None else _files(spec.folder, name)
    try:
        wanted = name if files is None else _with_files(manager.task_index[name], files)
        found = manager.load(wanted)["tasks"]
    except Exception as error:  # of the network, of data sets, of the functions that a task names
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise UserError(
            f"data: lm-eval cannot load task {name} ({type(error).__name__}: {reason}). Without a network"
            f" give data.folder=DIR with {name}.train.jsonl and {name}.eval.jsonl, or YAML of your own with"
            " dataset_path: json in data.include"
        ) from None
    for one, task in found.items():
        if task.OUTPUT_TYPE not in ("multiple_choice", "loglikelihood") or "acc" not in task.aggregation():
            raise UserError(
                f"data.tasks: {one} is of type {task.OUTPUT_TYPE} with metrics"
                f" {', '.join(task.aggregation())}; expected multiple_choice or loglikelihood with acc."
                " Leave it out"
            )
    return found


def _files(folder: str, name: str) -> dict[str, Any]:
    """Rows of both files of a task; train only if it is there."""
    paths = {one: Path(folder).expanduser() / f"{name}.{one}.jsonl" for one in ("train", "eval")}
    if not paths["eval"].is_file():
        raise UserError(f"data.folder: there is no {paths['eval'].absolute()}. Leave {name} out, or write it")
    return {split: lines(path).documents for split, path in paths.items() if path.is_file()}


def _with_files(entry: Any, files: dict[str, Any]) -> dict[str, Any]:
    """The whole config of a task, with rows of the user's in place of its data set."""
    from datasets import Dataset
    from lm_eval.tasks._yaml_loader import load_yaml  # type: ignore[import-not-found]

    config = load_yaml(entry.yaml_path)
    splits = {"eval": config.get("test_split") or config.get("validation_split")}
    splits["train"] = config.get("training_split")
    rows = {splits[one]: Dataset.from_list(some) for one, some in files.items() if splits[one]}
    if "train" not in files:
        config.pop("training_split", None)
    return {**config, "dataset_kwargs": None, "custom_dataset": lambda **_: rows}
