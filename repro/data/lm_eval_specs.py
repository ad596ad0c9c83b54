"""Tasks of lm-evaluation-harness: the typed config. Imports neither PyTorch nor lm-eval."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import yaml
from pydantic import field_validator, model_validator

from repro.data.base_specs import Data, sha256_of
from repro.data.few_shot_specs import FewShot
from repro.errors import UserError


class LmEvalTasks(FewShot):
    """Multiple-choice and last-word tasks of lm-eval (0.4), its own or the user's YAML, with its prompts.

    include: folders with YAML of the user's tasks (or one such file each); with it lm-eval's own tasks are
    not looked through, unless one of `tasks` is not there. folder: of TASK.train.jsonl and TASK.eval.jsonl,
    which take the place of the data sets that the YAML names; null: as the YAML says, from the hub or files.
    bos: a start token before every context; null: as the tokenizer does of itself.
    """

    kind: Literal["lm_eval_tasks"] = "lm_eval_tasks"
    module: ClassVar[str] = "repro.data.lm_eval_tasks"
    include: list[str] = []
    folder: str | None = None
    bos: bool | None = False

    @field_validator("include", mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        return [given] if isinstance(given, str) else given or []

    @model_validator(mode="after")
    def _known(self) -> Self:
        if not self.tasks:
            raise UserError(
                "data.tasks: expected names of lm-eval's tasks. Give e.g. data.tasks=[piqa] (lm-eval ls tasks"
                " lists them), or names of your own with data.include=FOLDER_OF_YAML"
            )
        for name in ("tasks", "shots"):
            given = getattr(self, name)
            if len(set(given)) < len(given):
                raise UserError(f"data.{name}: the same is there twice: {given}")
        for key, places in (("include", self.include), ("folder", [self.folder] if self.folder else [])):
            for place in places:
                path = Path(place).expanduser()
                if not (path.is_dir() or (key == "include" and path.is_file())):
                    raise UserError(f"data.{key}: there is no {path.absolute()}. Give a folder that exists")
        return self

    @property
    def names(self) -> list[str]:
        """The tasks, in the order asked for."""
        return list(self.tasks or [])

    def for_model(self, model: Any) -> Data:
        """Refused for a model trained on the small world, which knows its words alone."""
        if getattr(getattr(model, "task", None), "kind", None) == "in_context":
            raise UserError(
                "data=lm_eval_tasks: this model knows the words of its small world alone. Give"
                " data=few_shot_toy, or model=hf model.path=NAME_OR_FOLDER"
            )
        return self

    def fingerprint(self) -> dict[str, Any]:
        """The YAML, the files that it names, and those of `folder`, by checksum; lm-eval's version.

        Raises `UserError` where lm-eval is not installed.
        """
        if util.find_spec("lm_eval") is None:
            raise UserError(
                "data=lm_eval_tasks needs lm-eval, which is not installed:"
                " pip install 'repro-harness[lm-eval]' (here: pip install -e '.[lm-eval]')."
                " data=few_shot_tasks has the tasks of 2022 without it"
            )
        plain = self.model_dump(mode="json", exclude={"include", "folder"})
        files = [sha256_of(place) for place in self.include]
        named = {place: sha256_of(place) for place in sorted(set(self._named())) if Path(place).is_file()}
        if self.folder is not None:
            paths = [Path(self.folder).expanduser() / f"{name}.{split}.jsonl" for name in self.names
                     for split in ("train", "eval")]  # fmt: skip
            named |= {path.name: sha256_of(path) for path in paths if path.is_file()}
        return {**plain, "lm_eval": metadata.version("lm-eval"), "files": [*files, *named.values()]}

    def _named(self) -> Iterator[str]:
        """Paths under data_files in the YAML of `include`."""
        for place in self.include:
            path = Path(place).expanduser()
            for file in [path] if path.is_file() else sorted(path.rglob("*.yaml")):
                try:
                    found = yaml.load(file.read_text(encoding="utf-8"), Loader=_Plain)
                except (OSError, UnicodeDecodeError, yaml.YAMLError):
                    continue  # lm-eval says what is wrong, if it is a task that is asked for
                kwargs = found.get("dataset_kwargs") if isinstance(found, dict) else None
                yield from _texts(kwargs.get("data_files") if isinstance(kwargs, dict) else None)


class _Plain(yaml.SafeLoader):
    """Reads tasks without importing the functions that they name."""


_Plain.add_multi_constructor("!", lambda loader, suffix, node: None)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)
