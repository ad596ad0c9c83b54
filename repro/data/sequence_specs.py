"""How in-context sequences are made of features: the typed `sequences` of a config."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from repro.errors import UserError
from repro.specs import Spec

Share = int | Literal["rest"]
Split = tuple[Share, Share, Share]
Relabel = Literal["train", "val", "test", "all", "01", "flip"]
Part = Literal["train", "val", "test", "all"]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0)]
PARTS = ("train", "val", "test")
RESERVED = ("train", "train_iter", "eval_iter", "sequences", "all")


class ClassDraw(Spec):
    """Which classes one sequence contains, apart from the query: see `repro.data.sequences`.

    burstiness: copies of the query's class in the context (0: none on purpose);
    distractor: as many copies of one other class; no_support: the rest avoids both classes;
    unique_rest: the rest avoids both and repeats nothing.
    """

    burstiness: Natural = 1
    distractor: bool = True
    no_support: bool = False
    unique_rest: bool = False

    def rest(self, context: int) -> int:
        """Context items that are neither copies of the query's class nor distractors."""
        return context - self.burstiness * (2 if self.distractor else 1)

    def check_fits(self, context: int, where: str) -> None:
        """Raise `UserError` if the copies do not fit into a context of `context` items."""
        if self.rest(context) < 0:
            needed = self.burstiness * (2 if self.distractor else 1)
            limit = context // (2 if self.distractor else 1)
            raise UserError(
                f"{where}.burstiness: {self.burstiness} copies of the query's class"
                f"{' and as many distractors' if self.distractor else ''} need a context of {needed} items,"
                f" got {context}. Valid: 0..{limit}, or a longer context"
            )


class TrainSampler(ClassDraw):
    """One of the samplers that training batches are mixed of, in proportion to `weight`."""

    weight: Annotated[float, Field(gt=0)] = 1.0


class Evaluator(ClassDraw):
    """One fixed evaluation set.

    relabel: null keeps class indices as labels; `train` (default) does too if training has no
    relabelling (`labels: 0`). context and noise: null takes the training value.
    """

    classes: Part = "train"
    exemplars: Part = "train"
    relabel: Relabel | None = "train"
    context: Positive | None = None
    noise: NonNegative | None = None
    random_query_label: bool = False


class Sequences(Spec):
    """In-context sequences for training and evaluation.

    class_split, exemplar_split: how many are for train, val, test, in this order of index;
    `rest` is what is left. labels: number of labels a pair is drawn of for each sequence
    (0: labels are class indices). label_pair_split: ratios of the label pairs for train, val,
    test; null trains on all. The order of `evaluate` matters: it is part of the random stream.
    """

    context: Positive = 2
    class_split: Split = (50, "rest", 100)
    exemplar_split: Split = (1, "rest", 0)
    labels: Natural = 5
    label_pair_split: tuple[NonNegative, NonNegative, NonNegative] | None = None
    label_pair_seed: Natural = 20
    match_query_and_distractors: bool = False
    noise: NonNegative = 0.0
    random_query_label: bool = False
    zipf_alpha: float = 0.0
    train: tuple[TrainSampler, ...] = (TrainSampler(),)
    evaluate: dict[str, Evaluator] = {}
    evaluation_sequences: Positive = 1000

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for key in ("class_split", "exemplar_split"):
            _check_split(key, getattr(self, key))
        self._check_labels()
        if not self.train:
            raise UserError("sequences.train: at least one sampler is required, got an empty list")
        for index, sampler in enumerate(self.train):
            sampler.check_fits(self.context, f"sequences.train[{index}]")
        for name, evaluator in self.evaluate.items():
            self._check_evaluator(f"sequences.evaluate.{name}", name, evaluator)
        return self

    def fingerprint(self) -> dict[str, Any]:
        """For the run's hash: the evaluators as a list, because their order can change a number."""
        plain = self.model_dump(mode="json")
        return {**plain, "evaluate": [[name, one] for name, one in plain["evaluate"].items()]}

    def _check_labels(self) -> None:
        if self.labels == 1:
            raise UserError(
                "sequences.labels: a pair needs at least 2 labels, got 1. 0 means: labels are class indices"
            )
        if self.label_pair_split is not None and self.labels == 0:
            raise UserError(
                "sequences.label_pair_split: with labels: 0 there are no pairs. Set labels, or null here"
            )
        if self.label_pair_split is not None and self.label_pair_split[0] <= 0:
            raise UserError(
                "sequences.label_pair_split: the ratio for training must be positive,"
                f" got {list(self.label_pair_split)} (train, val, test)"
            )

    def _check_evaluator(self, where: str, name: str, evaluator: Evaluator) -> None:
        if name in RESERVED or not name.isidentifier():
            raise UserError(
                f"{where}: not a valid name: letters, digits and _ only, and none of {', '.join(RESERVED)}"
            )
        evaluator.check_fits(evaluator.context or self.context, where)
        for key, split in (("classes", self.class_split), ("exemplars", self.exemplar_split)):
            part, used = (
                getattr(evaluator, key),
                [name for name, share in zip(PARTS, split, strict=True) if share],
            )
            if part not in (*used, "all"):
                raise UserError(
                    f"{where}.{key}: {part!r} has no {key} in the split {list(split)}."
                    f" Valid choices: {', '.join(used)}, all"
                )
        if evaluator.relabel == "flip" and (evaluator.burstiness == 0 or not evaluator.distractor):
            raise UserError(
                f"{where}.relabel: flip exchanges the labels of two context classes, so it needs"
                f" burstiness >= 1 and distractor: true; got burstiness {evaluator.burstiness},"
                f" distractor {evaluator.distractor}"
            )
        self._check_pairs(where, evaluator.relabel)

    def _check_pairs(self, where: str, relabel: str | None) -> None:
        if self.labels == 0 and relabel in ("val", "test", "all"):
            raise UserError(
                f"{where}.relabel: {relabel!r} needs label pairs, and labels is 0."
                " Valid choices: null, train, '01', flip"
            )
        if self.labels and relabel in ("val", "test") and self.pair_counts()[relabel] == 0:
            raise UserError(
                f"{where}.relabel: no label pairs are held out for {relabel!r}: label_pair_split"
                f" {self.label_pair_split} of {self.labels} labels gives {self.pair_counts()}"
            )

    def pair_counts(self) -> dict[str, int]:
        """How many unordered label pairs each part gets: floor(pairs * ratio); train takes what is left."""
        pairs = self.labels * (self.labels - 1) // 2
        ratios = self.label_pair_split or (1.0, 0.0, 0.0)
        val, test = (int(pairs * ratio / sum(ratios)) for ratio in ratios[1:])
        return {"train": pairs - val - test, "val": val, "test": test}


def _check_split(key: str, split: Split) -> None:
    if list(split).count("rest") > 1 or any(share != "rest" and share < 0 for share in split):
        raise UserError(
            f"sequences.{key}: three numbers >= 0 (train, val, test), at most one of them the word rest;"
            f" got {list(split)}"
        )
    if split[0] == 0:
        raise UserError(f"sequences.{key}: nothing is left for training in {list(split)} (train, val, test)")
