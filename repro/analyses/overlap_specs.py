"""What comparisons of head importance across tasks and shots can be told. Imports no PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from repro.analyses.base_specs import Analysis
from repro.analyses.importance_specs import HeadImportanceSettings, content_of, costed
from repro.analyses.induction_specs import Copying, CopyingOptions, PrefixMatching, PrefixOptions
from repro.costs import Cost, added
from repro.data.token_sequence_specs import InductionSequences
from repro.errors import UserError

Natural = Annotated[int, Field(ge=0)]


class ComparedImportance(Analysis):
    """Head importance of several tasks: saved, or computed here.

    scores: folder of a run of head_importance, or a JSON file {"task": [[...]], "task.1shot": [[...]]}; null:
    computed here from the data's tasks, as `importance` says. held_out: tasks that count in no mean.
    """

    models: ClassVar[tuple[str, ...]] = ("hf", "organism", "none")
    scores: str | None = None
    held_out: list[str] = []
    importance: HeadImportanceSettings = HeadImportanceSettings()

    @property
    def trains(self) -> bool:
        return False

    @field_validator("scores")
    @classmethod
    def _there(cls, scores: str | None) -> str | None:
        return _existing(scores, "analysis.scores")

    def fingerprint(self) -> dict[str, Any]:
        plain = self.model_dump(mode="json")
        for name in ("tokens", "recompute"):
            plain["importance"].pop(name)
        for name in ("scores", "prefix_scores", "copying_scores"):
            if plain.get(name):
                plain[name] = content_of(plain[name])
        return plain

    def cost(self, subject: Any, data: Any) -> Cost:
        """That of head importance, unless it is given; the rest is arithmetic."""
        return Cost(()) if self.scores else costed(data, self.importance.importance_cost)


class ImportanceOverlap(ComparedImportance):
    """Whether the same heads are important for different tasks and shots.

    top: share of heads that are compared as sets. random: seed of one more row, a random order of all heads;
    null: none. pairs: of tasks, which get scalars of their own (NaN where a task is not there).
    """

    module: ClassVar[str] = "repro.analyses.importance_overlap"
    kind: Literal["importance_overlap"] = "importance_overlap"
    top: Annotated[float, Field(gt=0, lt=1)] = 0.3
    random: Natural | None = None
    pairs: list[Annotated[list[str], Field(min_length=2, max_length=2)]] = []


class CapacityRetained(ComparedImportance):
    """How much of all heads' prefix matching and copying is left when the least important ones are removed.

    prefix_scores, copying_scores: folder of a run of prefix_matching or copying; null: computed here on
    `induction_sequences`. tasks: those that get scalars of their own (NaN where they are not there).
    """

    module: ClassVar[str] = "repro.analyses.capacity_retained"
    kind: Literal["capacity_retained"] = "capacity_retained"
    tasks: list[str] = []
    prefix_scores: str | None = None
    copying_scores: str | None = None
    induction_sequences: InductionSequences = InductionSequences()
    prefix: PrefixOptions = PrefixOptions()
    copying: CopyingOptions = CopyingOptions()

    @field_validator("prefix_scores", "copying_scores")
    @classmethod
    def _saved(cls, scores: str | None) -> str | None:
        return _existing(scores, "analysis.prefix_scores, analysis.copying_scores")

    def cost(self, subject: Any, data: Any) -> Cost:
        """Those of the scores that are not given."""
        parts = [super().cost(subject, data)]
        if self.prefix_scores is None:
            parts.append(PrefixMatching(prefix=self.prefix).cost(subject, self.induction_sequences))
        if self.copying_scores is None:
            parts.append(Copying(copying=self.copying).cost(subject, self.induction_sequences))
        return added(parts)


def _existing(path: str | None, key: str) -> str | None:
    if path is not None and not Path(path).expanduser().exists():
        raise UserError(f"{key}: no such file or folder: {Path(path).absolute()}. Give the folder of a run")
    return path
