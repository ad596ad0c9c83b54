"""Few-shot tasks: the typed config. Imports no PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from repro.data import few_shot_sizes
from repro.data.base_specs import Data, sha256_of
from repro.data.scored_specs import Workload
from repro.data.sequence_specs import Natural, Positive
from repro.errors import UserError

TASKS = (
    "hellaswag", "piqa", "arc_easy", "arc_challenge", "openbookqa", "winogrande", "boolq", "cb", "copa",
    "wic", "wsc", "multirc", "rte", "record",
)  # fmt: skip
HELD_OUT = ("mathqa", "lambada")
TOY_TASKS = ("two_labels", "three_labels", "two_groups", "other_groups", "knowledge")
TOY_HELD_OUT = ("recall", "completion")
Shots = Annotated[list[Natural], Field(min_length=1)]


class FewShot(Data):
    """What few-shot tasks of any source share.

    tasks: by name; null: all but those held out. shots: numbers of demonstrations; every task with each.
    seed: of our draws (see `repro.data.demonstrations`). examples: training documents that heads are ranked
    on, the first so many (null: all). questions: evaluation documents, a sample drawn with `seed` (null:
    all).
    """

    module: ClassVar[str] = "repro.data.few_shot_tasks"
    choices: ClassVar[tuple[str, ...]] = ()
    tasks: list[str] | None = None
    shots: Shots = [0]
    seed: Natural = 0
    examples: Positive | None = 2500
    questions: Positive | None = None

    @model_validator(mode="after")
    def _known(self) -> Self:
        unknown = [name for name in self.tasks or [] if name not in self.choices]
        if unknown or self.tasks == []:
            raise UserError(
                f"data.tasks: got {', '.join(unknown) or 'none'}. Valid: {', '.join(self.choices)}."
                f" Give e.g. data.tasks=[{self.choices[0]}]"
            )
        for name in ("tasks", "shots"):
            given = getattr(self, name) or []
            if len(set(given)) < len(given):
                raise UserError(f"data.{name}: the same is there twice: {given}")
        return self


class FewShotTasks(FewShot):
    """The fourteen tasks of 2022, and two held out, with their prompts.

    folder: of TASK.train.jsonl and TASK.eval.jsonl in the fields of the Hugging Face data set; null: the data
    sets themselves, downloaded by the library `datasets` or found in its cache. draws: of demonstrations of
    questions, ours (seeded) or those of the released evaluation; demonstrations of the examples are always
    ours, since the published ones cannot be had. exclude_query: whether an example is never its own
    demonstration (in the release it can be). separator: between demonstrations. continuation: of the six
    multiple-choice tasks without its leading space (released), or as it is evaluated. bos: a start token
    before every context; null: as the tokenizer does of itself.
    """

    kind: Literal["few_shot_tasks"] = "few_shot_tasks"
    choices: ClassVar[tuple[str, ...]] = (*TASKS, *HELD_OUT)
    folder: str | None = None
    draws: Literal["seeded", "released"] = "seeded"
    exclude_query: bool = False
    separator: str = "\n\n"
    continuation: Literal["released", "evaluation"] = "released"
    bos: bool | None = False

    @property
    def names(self) -> list[str]:
        """The tasks, in the order asked for."""
        return list(self.tasks or TASKS)

    @field_validator("folder")
    @classmethod
    def _there(cls, folder: str | None) -> str | None:
        if folder is not None and not Path(folder).expanduser().is_dir():
            raise UserError(
                f"data.folder: no such folder: {Path(folder).absolute()}. Give one with TASK.train.jsonl and"
                " TASK.eval.jsonl for every task"
            )
        return folder

    def files(self, task: str) -> dict[str, Path]:
        """The files of a task in `folder`, by split: train and eval, as far as they are there."""
        assert self.folder is not None
        paths = {
            split: Path(self.folder).expanduser() / f"{task}.{split}.jsonl" for split in ("train", "eval")
        }
        return {split: path for split, path in paths.items() if path.is_file()}

    def workload(self) -> list[Workload]:
        """How much there is to score, as far as sizes of the data sets are known; a folder's are not read."""
        return [
            few_shot_sizes.workload(name, shot, self.examples, self.questions)
            for shot in self.shots for name in self.names
        ]  # fmt: skip

    def fingerprint(self) -> dict[str, Any]:
        plain = self.model_dump(mode="json", exclude={"folder"})
        plain["tasks"] = self.names
        if self.folder is None:
            return plain
        files = {name: self.files(name) for name in self.names}
        return {**plain, "files": {
            f"{name}.{split}": sha256_of(path) for name, some in files.items() for split, path in some.items()
        }}  # fmt: skip

    def for_model(self, model: Any) -> Data:
        """A model trained on the small world knows its words alone: as many shots of that world's tasks."""
        if getattr(getattr(model, "task", None), "kind", None) != "in_context":
            return self
        if self.folder is not None:
            raise UserError(
                "data.folder: this model knows the words of its small world alone. Leave it out, or give"
                " model=hf model.path=NAME_OR_FOLDER"
            )
        held = [name for name in self.names if name in HELD_OUT]
        own = [name for name in self.names if name not in HELD_OUT]
        names = [*(TOY_TASKS if own else ()), *(TOY_HELD_OUT if held else ())]
        return FewShotToy(tasks=names, shots=self.shots, seed=self.seed)


class FewShotToy(FewShot):
    """Tasks of a small world of our own, for a model that is trained here (see `repro.data.icl_world`)."""

    kind: Literal["few_shot_toy"] = "few_shot_toy"
    module: ClassVar[str] = "repro.data.few_shot_toy"
    choices: ClassVar[tuple[str, ...]] = (*TOY_TASKS, *TOY_HELD_OUT)
    examples: Positive | None = 50
    questions: Positive | None = 100

    @property
    def names(self) -> list[str]:
        """The tasks, in the order asked for."""
        return list(self.tasks or TOY_TASKS)

    def workload(self) -> list[Workload]:
        """How much there is to score; documents have about four tokens, the last one the choice."""
        return [
            Workload(name, self.examples or 1000, 4 * (shot + 1), self.questions or 1000, 3, 4 * shot + 2, 1)
            for shot in self.shots for name in self.names
        ]  # fmt: skip
