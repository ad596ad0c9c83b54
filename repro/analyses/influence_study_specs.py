"""What studies with influence scores can be told: against retrainings, and against each other. Imports no"
" PyTorch."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from repro.analyses.base_specs import Analysis, Of
from repro.analyses.influence_costs import retrainings
from repro.analyses.influence_specs import InfluenceAnalysis
from repro.costs import Cost, added
from repro.data.base_specs import sha256_of
from repro.errors import UserError

Natural = Annotated[int, Field(ge=0)]
TUNED = ("text_organism", "fine_tuned")
STANDS_IN = 10_000_000  # a model with fewer parameters, for estimates
OWN = set(InfluenceAnalysis.model_fields)


class Variants(InfluenceAnalysis):
    """Scores in several ways. variants: name -> what it says differently of the keys that all analyses"
    " share."""

    variants: Annotated[dict[str, dict[str, Any]], Field(min_length=1)] = {
        name: {"strategy": name} for name in ("identity", "diagonal", "kfac", "ekfac")
    }

    @model_validator(mode="after")
    def _parsed(self) -> Self:
        self.settings()
        return self

    def settings(self) -> dict[str, InfluenceAnalysis]:
        """The settings of every variant."""
        less = {"per_token": False, "per_module": False, "self_influence": False}
        own = {**self.model_dump(include=OWN), **less}
        return {
            name: InfluenceAnalysis.parse({**own, **said}, f"analysis.variants.{name}")
            for name, said in self.variants.items()
        }

    def items(self, of: Of) -> int | None:
        return None

    def cost(self, subject: Any, data: Any) -> Cost:
        """Of factors and scores in every way; what two ways share is counted twice."""
        cost = added([one.cost(subject, data) for one in self.settings().values()])
        return replace(cost, lines=tuple(dict.fromkeys(cost.lines)))


class ScoreAgreement(Variants):
    """How alike scores are that were computed in several ways: rank correlation over training blocks.

    reference: the variant that the others are compared with.
    """

    module: ClassVar[str] = "repro.analyses.score_agreement"
    splits_over: ClassVar[str | None] = "training blocks"
    kind: Literal["score_agreement"] = "score_agreement"
    reference: str = "ekfac"

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.reference not in self.variants:
            raise UserError(
                f"analysis.reference: got {self.reference!r}. Valid variants: {', '.join(self.variants)}"
            )
        return self


class DatamodelingScore(Variants):
    """Whether scores predict what training on half of the blocks does: the linear datamodeling score.

    masks: random halves of the training blocks; repeats: trainings of each, with seeds of their own. auto:
    100 and 5 as published, 20 and 2 for a model that stands in.
    share: of the blocks that a mask keeps. given: masks and losses come from files and nothing is trained.
    masks_path: [mask, train] of 0 and 1; losses_path: [mask, query], summed over a block and averaged over
    repeats; .npy, or the published .pt.
    """

    module: ClassVar[str] = "repro.analyses.datamodeling_score"
    models: ClassVar[tuple[str, ...]] = ("hf", *TUNED)
    splits_over: ClassVar[str | None] = "retrainings"
    kind: Literal["datamodeling_score"] = "datamodeling_score"
    masks: Literal["auto"] | Annotated[int, Field(ge=3)] = "auto"
    repeats: Literal["auto"] | PositiveInt = "auto"
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    mask_seed: Natural = 7
    given: bool = False
    masks_path: str | None = None
    losses_path: str | None = None

    @model_validator(mode="after")
    def _both(self) -> Self:
        if (self.masks_path is None) != (self.losses_path is None):
            raise UserError(
                "analysis.masks_path, analysis.losses_path: losses belong to masks, so give both or neither"
            )
        return self

    @property
    def from_files(self) -> bool:
        """Whether nothing is trained."""
        return self.given or self.masks_path is not None

    def items(self, of: Of) -> int | None:
        if self.from_files:
            return None
        asked = self.sized(bool(of("")["model"].embedded))
        return int(asked.masks) * int(asked.repeats)

    def cost(self, subject: Any, data: Any) -> Cost:
        """Retrainings beside the scores."""
        scores = super().cost(subject, data)
        if self.from_files:
            return scores
        asked = self.sized(subject.parameters < STANDS_IN)
        count = int(asked.masks) * int(asked.repeats)
        return added([scores, retrainings(count, self.share, subject, data)])

    def sized(self, embedded: bool) -> Self:
        """With numbers for auto."""
        masks, repeats = (20, 2) if embedded else (100, 5)
        chosen = {"masks": masks, "repeats": repeats}
        return self.model_copy(update={key: n for key, n in chosen.items() if getattr(self, key) == "auto"})

    def fingerprint(self) -> dict[str, Any]:
        paths = {"masks_path": self.masks_path, "losses_path": self.losses_path}
        return {**super().fingerprint(), **{name: path and sha256_of(path) for name, path in paths.items()}}


class Removal(InfluenceAnalysis):
    """What is lost when the training blocks with the largest scores are left out: counterfactual removal.

    first: the scores are for the sum of so many of the first queries, whose perplexity is measured.
    removed: how many blocks; auto: 0 to 200 as published, 0 to 64 for a model that stands in.
    repeats: trainings of each, with seeds 0, 1, ...; strategies: whose top blocks, beside random ones, the
    first of one permutation (random_seed).
    """

    module: ClassVar[str] = "repro.analyses.removal"
    models: ClassVar[tuple[str, ...]] = TUNED
    splits_over: ClassVar[str | None] = "retrainings"
    kind: Literal["removal"] = "removal"
    first: PositiveInt = 50
    removed: Literal["auto"] | Annotated[list[Natural], Field(min_length=2)] = "auto"
    repeats: PositiveInt = 5
    strategies: Annotated[list[str], Field(min_length=1)] = ["ekfac", "identity"]
    random_seed: Natural = 0

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.removed != "auto" and (self.removed != sorted(set(self.removed)) or self.removed[0] != 0):
            raise UserError(
                f"analysis.removed: expected rising numbers from 0 on; got {self.removed}. Give e.g."
                " analysis.removed=[0,50,100]"
            )
        return self

    @property
    def curves(self) -> list[str]:
        """What blocks are chosen by."""
        return [*self.strategies, "random"]

    def items(self, of: Of) -> int | None:
        """One shared point where nothing is removed, and every other point of every curve."""
        steps = self.steps(bool(of("")["model"].embedded))
        return self.repeats * (1 + len(self.curves) * (len(steps) - 1))

    def cost(self, subject: Any, data: Any) -> Cost:
        """Retrainings, nearly all blocks each, beside scores of one summed query."""
        steps = self.steps(subject.parameters < STANDS_IN)
        count = self.repeats * (1 + len(self.curves) * (len(steps) - 1))
        return added([super().cost(subject, data), retrainings(count, 1.0, subject, data)])

    def steps(self, embedded: bool) -> list[int]:
        """How many blocks are removed, from 0 on."""
        if self.removed != "auto":
            return self.removed
        return [0, 16, 32, 64] if embedded else [0, 50, 100, 150, 200]


class TopSequences(InfluenceAnalysis):
    """The training blocks with the largest and smallest scores of some queries, as text to be read.

    queries: which. top: so many blocks. words: looked for in the first one's top block.
    """

    module: ClassVar[str] = "repro.analyses.top_sequences"
    kind: Literal["top_sequences"] = "top_sequences"
    queries: Annotated[list[Natural], Field(min_length=1)] = [0]
    top: PositiveInt = 3
    words: list[str] = []


class Tokenwise(InfluenceAnalysis):
    """Which tokens of a query's most influential training block its influence comes from.

    query: which. power: how colours grow with the share of the largest score (published: 0.3).
    """

    module: ClassVar[str] = "repro.analyses.tokenwise"
    kind: Literal["tokenwise"] = "tokenwise"
    query: Natural = 5
    power: Annotated[float, Field(gt=0)] = 0.3


STUDIES: tuple[type[Analysis], ...] = (ScoreAgreement, DatamodelingScore, Removal, TopSequences, Tokenwise)
