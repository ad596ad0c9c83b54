"""What the importance of heads and FFNs, and pruning by it, can be told. Imports no PyTorch.

`tokens` is how many padded tokens go through the model together: it changes memory and speed, and no number
beyond rounding.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from repro.analyses.base_specs import Analysis
from repro.costs import Cost, Work, added, not_modelled
from repro.data.scored_specs import Workload
from repro.specs import Spec

Natural = Annotated[int, Field(ge=0)]
Percent = Annotated[float, Field(ge=0, le=100)]


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
        return Cost(tuple(works))


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

    def evaluation_cost(self, workload: list[Workload], streams: float, share: float = 1.0) -> Cost:
        """Contexts once and every choice, in so many whole streams; share: of a block that is left."""
        works = []
        for one in workload:
            if one.questions:
                length = max(1, round(one.context_tokens + one.choices * max(one.choice_tokens - 1, 0)))
                works.append(
                    Work(f"{one.label}: {streams:.1f} streams", one.questions * streams, length,
                         unembedded=1 + one.choices * max(one.choice_tokens - 1, 0),
                         batch=max(1, self.tokens // length), share=share)
                )  # fmt: skip
        return Cost(tuple(works))


class FfnImportance(EvaluationSettings, Analysis):
    """How many points of accuracy each FFN is worth: the model without it against the whole one.

    held_out: tasks that do not count in the mean over tasks.
    """

    module: ClassVar[str] = "repro.analyses.ffn_importance"
    models: ClassVar[tuple[str, ...]] = ("hf", "organism")
    splits_over: ClassVar[str | None] = "questions"
    kind: Literal["ffn_importance"] = "ffn_importance"
    held_out: list[str] = []

    def fingerprint(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"tokens", "chunk", "cells"})

    def cost(self, subject: Any, data: Any) -> Cost:
        """One whole stream, and one from each FFN's layer on: half of a pass on average."""
        depth = subject.layers
        return costed(data, lambda given: self.evaluation_cost(given, 1 + (depth - 1) / 2))


def costed(data: Any, *parts: Any) -> Cost:
    """Costs of parts, each a function of the data's workload; not modelled where the data has none to say."""
    workload = getattr(data, "workload", None)
    if workload is None:
        return not_modelled("analysis", f"data {data.kind} does not say how many texts it has")
    given = workload()
    return added([part(given) for part in parts])
