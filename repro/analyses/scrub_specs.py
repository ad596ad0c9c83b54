"""What causal scrubbing can be told: hypotheses as data. Imports no PyTorch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from repro.analyses.circuit_specs import LmAnalysis
from repro.specs import Spec

Natural = Annotated[int, Field(ge=0)]
Features = Annotated[list[str], Field(min_length=1)]
SamplerSpec = Literal["exact", "unconditional", "twin", "corrupt"] | Features
NodeName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_ .:+-]+$")]


class Claimed(Spec):
    """A node of a hypothesis: direct paths from heads ("9.9"), MLPs ("mlp0") or "embedding" to its parent.

    at: named position of their outputs. through: the parent's input that they enter by (q, k, v, mlp);
    null under the root, where they enter the logits. sampler: what of the parent's prompt theirs keeps:
    `exact` all of it, `unconditional` nothing, `twin` is its corrupt twin, `corrupt` any corrupt one, a
    list of features only these. others: the same, for those of their inputs that no child claims.
    """

    nodes: list[str] = Field(min_length=1)
    at: str = "END"
    through: Literal["q", "k", "v", "mlp"] | None = None
    sampler: SamplerSpec = "exact"
    others: SamplerSpec = "unconditional"
    children: dict[NodeName, Claimed] = {}


class HypothesisSpec(Spec):
    """The root of a hypothesis, which is the logits at `at`: how its prompts are drawn, and its children."""

    at: str = "END"
    sampler: SamplerSpec = "exact"
    others: SamplerSpec = "unconditional"
    children: dict[NodeName, Claimed] = {}


class CausalScrubbing(LmAnalysis):
    """How much of the behaviour is left if only what a hypothesis calls important is kept.

    hypotheses: by name. samples: reference prompts drawn with replacement. seed: of all draws.
    labels: whose answer is scored: that of the reference prompt, or of the prompt that feeds unclaimed
    inputs (`other`). A hypothesis without children, by which nothing matters, is the base of the score.
    """

    module: ClassVar[str] = "repro.analyses.causal_scrubbing"
    kind: Literal["causal_scrubbing"] = "causal_scrubbing"
    hypotheses: dict[NodeName, HypothesisSpec] = Field(min_length=1)
    samples: PositiveInt = 400
    seed: Natural = 0
    labels: Literal["reference", "other"] = "reference"
    batch: PositiveInt = 64
