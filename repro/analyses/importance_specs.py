"""What the importance of heads and FFNs, and pruning by it, can be told. Imports no PyTorch.

`tokens` is how many padded tokens go through the model together: it changes memory and speed, and no number
beyond rounding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator

from repro.analyses.base_specs import Analysis
from repro.costs import Cost, Work, added, not_modelled
from repro.data.base_specs import sha256_of
from repro.data.scored_specs import Workload
from repro.specs import Spec

Natural = Annotated[int, Field(ge=0)]
Percent = Annotated[float, Field(ge=0, le=100)]
Sources = Annotated[
    list[str],
    Field(min_length=1),
    BeforeValidator(lambda given: [given] if isinstance(given, str) else given),
]
AT_WORK = 0.4
WORDS = ("own", "shot", "aggregate", "task", "highest", "lowest", "random")


class HeadImportanceSettings(Spec):
    """How the importance of heads is measured; defaults are those of the released code.

    absolute: value taken at each position, or of an example's sum over positions. last_layer_divisor: the
    last layer's scores are divided by the number of target tokens, or like those of the others by the number
    of input tokens. loss: mean cross-entropy of the continuation, of all tokens, or of the last one.
    overlength: what happens to examples beyond the context window: an error, loss of tokens from the left, or
    they are dropped. loss_scale: factor of the loss in the backward pass; null: 1, and in float16 as large as
    keeps gradients from becoming zero (the released code has 1). recompute: activations layer by layer.
    """

    absolute: Literal["position", "example"] = "position"
    last_layer_divisor: Literal["targets", "inputs"] = "targets"
    loss: Literal["continuation", "all_tokens", "last_token"] = "continuation"
    overlength: Literal["error", "left_truncate", "drop"] = "error"
    loss_scale: PositiveFloat | None = None
    recompute: bool = False
    tokens: PositiveInt = 2048

    def importance_cost(self, workload: list[Workload]) -> Cost:
        """A forward pass, and one back to activations, an example."""
        works = []
        for one in workload:
            if one.examples:
                length = max(1, round(one.example_tokens))
                batch = max(1, self.tokens // length)
                works.append(
                    Work(f"{one.label}: gradients of heads", one.examples, length, backwards=1,
                         recomputed=self.recompute, unembedded=one.choice_tokens or 4, batch=batch)
                )  # fmt: skip
        kept = "one layer's activations at a time" if self.recompute else "activations of all layers are kept"
        return Cost(tuple(works), lines=(f"{kept} for the way back (recompute: {self.recompute})",))


class HeadImportance(HeadImportanceSettings, Analysis):
    """How much the loss of examples changes with each head's output, to first order.

    held_out: tasks that do not count in the mean over tasks.
    """

    module: ClassVar[str] = "repro.analyses.head_importance"
    models: ClassVar[tuple[str, ...]] = ("hf", "organism")
    splits_over: ClassVar[str | None] = "examples"
    kind: Literal["head_importance"] = "head_importance"
    held_out: list[str] = []

    def fingerprint(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"tokens", "recompute"})

    def cost(self, subject: Any, data: Any) -> Cost:
        """See `importance_cost`."""
        return costed(data, self.importance_cost)


class EvaluationSettings(Spec):
    """How choices are scored.

    vocabulary: the log-softmax is over so many of the first logits; auto: 50265 of OPT's 50272, as in the
    released code, of other models all. overlength: questions beyond the context window lose tokens from the
    left, or are an error. chunk: questions whose scores are saved together. cells: folder of scores that
    experiments share, by weights, questions and mask; null: in the run's own.
    """

    vocabulary: Literal["auto", "all"] | PositiveInt = "auto"
    overlength: Literal["left_truncate", "error"] = "left_truncate"
    tokens: PositiveInt = 2048
    chunk: PositiveInt = 64
    cells: str | None = None

    def evaluation_cost(
        self, subject: Any, workload: list[Workload], streams: float, masks: float, share: float = 1.0
    ) -> Cost:
        """Contexts once and every choice, in so many whole streams.

        masks: of one sweep, each with logits of its own. share: of a block that is left in the streams.
        """
        works, logits = [], 0.0
        for one in workload:
            if one.questions:
                choices = one.choices * max(one.choice_tokens - 1, 0)
                length = max(1, round(one.context_tokens + choices))
                # Of streams that wait, the residual stream alone is kept: 0.4 of what a layer holds at work.
                batch = max(1, round(AT_WORK * min(masks, 128) * self.tokens / length))
                works.append(
                    Work(f"{one.label}: {streams:.1f} streams", one.questions * streams, length,
                         unembedded=0, batch=batch, share=share)
                )  # fmt: skip
                one_row = subject.forward_flops(1, 1) - subject.forward_flops(1, 0)
                logits += one.questions * masks * (1 + choices) * one_row
        return Cost(tuple(works), logits)


class FfnImportance(EvaluationSettings, Analysis):
    """How many points of accuracy each FFN is worth: the model without it against the whole one.

    held_out: tasks that do not count in the mean over tasks. report: tasks whose scalars are there in any
    case, NaN where the data does not have the task.
    """

    module: ClassVar[str] = "repro.analyses.ffn_importance"
    models: ClassVar[tuple[str, ...]] = ("hf", "organism")
    splits_over: ClassVar[str | None] = "questions"
    kind: Literal["ffn_importance"] = "ffn_importance"
    held_out: list[str] = []
    report: list[str] = []

    def fingerprint(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"tokens", "chunk", "cells"})

    def cost(self, subject: Any, data: Any) -> Cost:
        """One whole stream, and one from each FFN's layer on: half of a pass on average."""
        depth = subject.layers
        streams = 1 + (depth - 1) / 2
        return costed(data, lambda given: self.evaluation_cost(subject, given, streams, 1 + depth))


class Pruning(EvaluationSettings, Analysis):
    """Accuracy when the least important heads, FFNs or both are removed, by their percentage.

    component: heads, ffns, or both: every percentage of heads with every one of FFNs. ranking: by what
    components are ranked, one curve a source: `own` (the task itself), `shot:K` (the same task with K
    demonstrations), `aggregate` (mean over tasks with as many), `aggregate:K`, `task:NAME`, `highest` and
    `lowest` (the task whose scores agree most and least), `random`, `random:SEED`, or a file with
    score[layer, head] or imp[layer]: JSON, npz, or the folder of a run. ffn_ranking: the same of FFNs, where
    it differs. head_scores, ffn_scores: file or folder of a run with the scores of every task; null: they
    are computed here. partners: task -> the tasks to be taken for `highest` and `lowest`. evaluate: tasks
    that are pruned (null: all; held_out: those that count in no mean); others serve for rankings. held_out:
    further tasks that count in no mean. report: tasks whose scalars are there in any case, NaN where the data
    does not have the task. seed: of `random`. importance: how heads are ranked.
    """

    module: ClassVar[str] = "repro.analyses.pruning"
    models: ClassVar[tuple[str, ...]] = ("hf", "organism")
    splits_over: ClassVar[str | None] = "questions"
    kind: Literal["pruning"] = "pruning"
    component: Literal["heads", "ffns", "both"] = "heads"
    head_percents: Annotated[list[Percent], Field(min_length=1)] = list(range(0, 100, 10))
    ffn_percents: Annotated[list[Percent], Field(min_length=1)] = list(range(0, 100, 10))
    ranking: Sources = ["own"]
    ffn_ranking: Sources | None = None
    head_scores: str | None = None
    ffn_scores: str | None = None
    partners: dict[str, Annotated[list[str], Field(min_length=2, max_length=2)]] = {}
    evaluate: Literal["held_out"] | list[str] | None = None
    held_out: list[str] = []
    report: list[str] = []
    seed: Natural = 0
    importance: HeadImportanceSettings = HeadImportanceSettings()

    @model_validator(mode="after")
    def _once(self) -> Self:
        for name in ("head_percents", "ffn_percents", "ranking"):
            given = getattr(self, name)
            if len(set(given)) < len(given):
                raise ValueError(f"{name}: the same is there twice: {given}")
        if self.ffn_ranking is not None and len(self.ffn_ranking) != len(self.ranking):
            raise ValueError(
                f"ffn_ranking: one for each ranking of heads ({len(self.ranking)}); got"
                f" {len(self.ffn_ranking)}"
            )
        return self

    @property
    def levels(self) -> list[tuple[float, float]]:
        """Percentages of heads and of FFNs of every cell."""
        if self.component == "both":
            return [(heads, ffns) for heads in self.head_percents for ffns in self.ffn_percents]
        if self.component == "heads":
            return [(heads, 0) for heads in self.head_percents]
        return [(0, ffns) for ffns in self.ffn_percents]

    def fingerprint(self) -> dict[str, Any]:
        plain = self.model_dump(mode="json", exclude={"tokens", "chunk", "cells"})
        for name in ("tokens", "recompute"):
            plain["importance"].pop(name)
        for name in ("head_scores", "ffn_scores"):
            plain[name] = plain[name] and content_of(plain[name])
        for name in ("ranking", "ffn_ranking"):
            plain[name] = plain[name] and [content_of(one) if is_file(one) else one for one in plain[name]]
        return plain

    def cost(self, subject: Any, data: Any) -> Cost:
        """Rankings that are computed here, and a stream for every cell, less what is left out of it."""
        streams = 1 + len(self.ranking) * sum(heads + ffns > 0 for heads, ffns in self.levels)
        left = [_left(subject, heads / 100, ffns / 100) for heads, ffns in self.levels]
        share = sum(left) / len(left)
        parts: list[Any] = [lambda given: self.evaluation_cost(subject, given, streams, streams, share)]
        computed = [one for one in self.ranking if not is_file(one) and not one.startswith("random")]
        if computed and self.component != "ffns" and self.head_scores is None:
            parts.append(self.importance.importance_cost)
        if computed and self.component != "heads" and self.ffn_scores is None:
            depth = subject.layers
            parts.append(lambda given: self.evaluation_cost(subject, given, (depth - 1) / 2, depth))
        return costed(data, *parts)


def is_file(source: str) -> bool:
    """Whether a source of a ranking is a file or folder, not a word."""
    word = source.split(":")[0]
    return word not in WORDS


def content_of(path: str) -> str:
    """What of a file of scores can change a number: its content; of a run, its arrays."""
    place = Path(path).expanduser()
    return sha256_of(place / "arrays.npz" if (place / "arrays.npz").exists() else place)


def _left(shape: Any, heads: float, ffns: float) -> float:
    """Share of a block's operations that is left."""
    attention, mlp = shape.attention_weights, shape.mlp_weights
    return ((1 - heads) * attention + (1 - ffns) * mlp) / (attention + mlp)


def costed(data: Any, *parts: Any) -> Cost:
    """Costs of parts, each a function of the data's workload; not modelled where the data has none to say."""
    workload = getattr(data, "workload", None)
    if workload is None:
        return not_modelled("analysis", f"data {data.kind} does not say how many texts it has")
    given = workload()
    return added([part(given) for part in parts])
