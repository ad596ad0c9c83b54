"""What a small language model is trained on: the typed config. Imports no PyTorch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from repro.data.sequence_specs import Natural, Positive
from repro.errors import UserError
from repro.specs import Family

# What is measured on each of a task's probes; those of the second line only where a probe names rivals.
MEASURES = ("loss", "accuracy")
RIVAL_MEASURES = ("prefers", "logit_difference")


class Task(Family):
    """A source of training sequences without end, and of fixed probes that are not trained on.

    module: has `build(spec)`, which gives a `repro.data.lm_tasks.Task`. version: raised whenever the same
    spec gives other sequences, so that models trained before are trained anew. probes: name -> whether it
    names rivals.
    """

    version: ClassVar[int] = 1
    probes: ClassVar[dict[str, bool]] = {}
    kind: str

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence: the context that a model of the task needs at least."""
        raise NotImplementedError

    @property
    def metrics(self) -> list[str]:
        """Names of everything that is measured on the probes: <probe>_<measure>."""
        measures = {False: MEASURES, True: MEASURES + RIVAL_MEASURES}
        return [f"{probe}_{one}" for probe, rivals in self.probes.items() for one in measures[rivals]]

    def fingerprint(self) -> dict[str, Any]:
        """Everything of it that can change a sequence."""
        return {**self.model_dump(mode="json"), "version": self.version}


class RepeatsTask(Task):
    """A random permutation of n tokens, repeated to fill the sequence; n is drawn for each sequence.

    n is uniform from length/8 to length/2. With one n for all, a head that looks back a fixed distance
    would do; with many, only induction does. Predicted are the tokens from the second of the second copy on.
    """

    module: ClassVar[str] = "repro.data.repeats_task"
    probes: ClassVar[dict[str, bool]] = {"quarter": False, "third": False, "half": False}
    kind: Literal["repeats"] = "repeats"
    vocabulary: Positive = 64
    length: Annotated[int, Field(ge=8)] = 48
    probe_sequences: Positive = 200

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.vocabulary < self.length // 2:
            raise UserError(
                f"model.task.vocabulary: permutations of up to length/2 = {self.length // 2} tokens need"
                f" as many; got {self.vocabulary}. Give model.task.vocabulary={self.length // 2}"
            )
        return self

    @property
    def longest(self) -> int:
        return self.length


class IoiTask(Task):
    """Sentences of a small world in which the subject's name returns and the other name comes last.

    held_out_share: of the unordered pairs of names, those that never occur together in training (drawn with
    `split_seed`); the same keys and values as of data=ioi_toy.
    """

    module: ClassVar[str] = "repro.data.ioi_task"
    probes: ClassVar[dict[str, bool]] = {"held_out": True, "abc": True}
    kind: Literal["ioi"] = "ioi"
    held_out_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    split_seed: Natural = 0
    probe_sentences: Positive = 400

    @property
    def longest(self) -> int:
        return 17  # the start token, at most 15 words, and the answer


class FactsTask(Task):
    """Sentences that end in an attribute of a subject: four relations, two templates each.

    Only the attribute is predicted. withheld_share: of the facts, those that training never says in their
    second template. The same keys and values as of data=facts_toy. probe_sentences: at most so many a probe.
    """

    module: ClassVar[str] = "repro.data.facts_task"
    probes: ClassVar[dict[str, bool]] = {"recall": False, "withheld": False}
    kind: Literal["facts"] = "facts"
    subjects: Annotated[int, Field(ge=1, le=2000)] = 200
    world_seed: Natural = 0
    withheld_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    probe_sentences: Positive = 400

    @property
    def longest(self) -> int:
        return 14  # the start token, at most 12 words, and the attribute


class InContextTask(Task):
    """Repeated random words, and few-shot tasks whose labels are drawn anew for each sequence.

    Of a batch the share `repeats` are random words, half of them behind a start token: by turns a block that
    is repeated (predicted from the second of the second copy on), and pairs in random order (the second word
    of pairs that were there before), of which only the word just before tells what follows. The others are
    documents of one task with `;` between them, of five kinds in turn (see `repro.data.icl_world`), of which
    the answers are predicted. In the first `repeats_first` steps all are repeated blocks without start token:
    the rest is learned faster by a model that has induction.
    """

    module: ClassVar[str] = "repro.data.in_context_task"
    version: ClassVar[int] = 2
    probes: ClassVar[dict[str, bool]] = {
        "repeats": False, "pairs": False, "labels": False, "groups": False, "knowledge": False,
        "recall": False, "completion": False,
    }  # fmt: skip
    kind: Literal["in_context"] = "in_context"
    length: Annotated[int, Field(ge=16)] = 48
    repeats: Annotated[float, Field(ge=0, le=1)] = 0.4
    repeats_first: Natural = 500
    probe_sequences: Positive = 100

    @property
    def longest(self) -> int:
        return self.length
