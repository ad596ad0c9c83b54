"""What each analysis can be told, one class a question."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from repro.analyses import attribute_specs as attribute_specs
from repro.analyses import importance_specs as importance_specs
from repro.analyses import influence_study_specs as influence_study_specs
from repro.analyses import overlap_specs as overlap_specs  # and with it induction_specs
from repro.analyses.base_specs import Analysis as Analysis
from repro.analyses.base_specs import Of as Of
from repro.analyses.flow_specs import AttentionKnockout as AttentionKnockout
from repro.analyses.flow_specs import KnownFacts as KnownFacts
from repro.analyses.influence_specs import InfluenceIdentities as InfluenceIdentities
from repro.analyses.influence_specs import InfluenceScores as InfluenceScores
from repro.analyses.lm_circuit_specs import CircuitEvaluation as CircuitEvaluation
from repro.analyses.lm_circuit_specs import FindCircuit as FindCircuit
from repro.analyses.lm_measure_specs import ActivationPatching as ActivationPatching
from repro.analyses.lm_measure_specs import AttentionPatterns as AttentionPatterns
from repro.analyses.lm_measure_specs import AttentionWriting as AttentionWriting
from repro.analyses.lm_measure_specs import CopyScores as CopyScores
from repro.analyses.lm_measure_specs import Knockouts as Knockouts
from repro.analyses.lm_measure_specs import LogitAttribution as LogitAttribution
from repro.analyses.lm_measure_specs import LogitDifference as LogitDifference
from repro.analyses.lm_measure_specs import RandomTokenScores as RandomTokenScores
from repro.analyses.moving_specs import MovingPieces as MovingPieces
from repro.analyses.path_patching_specs import FlipEffects as FlipEffects
from repro.analyses.path_patching_specs import IterativePathPatching as IterativePathPatching
from repro.analyses.path_patching_specs import PathPatching as PathPatching
from repro.analyses.scrub_specs import CausalScrubbing as CausalScrubbing
from repro.analyses.tuning_specs import TextTraining as TextTraining
from repro.interventions.specs import Head, Manipulation
from repro.specs import Spec
from repro.training.schedule import checkpoint_steps, nearest
from repro.training.specs import Training

Factor = Literal["a", "b", "c"]
Manipulations = list[dict[str, Any]]
Natural = Annotated[int, Field(ge=0)]
# What names of scalars may begin with.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:+=-]*$")]
PREVIOUS_TOKEN_HEADS, OTHER_HEADS = "previous_token_heads", "other_heads"


class ToyFactors(Analysis):
    """Learn the product of three vectors by gradient descent, with none or some of them clamped to the truth.

    dimension: length of each vector.
    conditions: name -> factors held at their true value.
    report_at: iterations whose loss and progress become scalars.
    """

    module: ClassVar[str] = "repro.analyses.toy_factors"
    kind: Literal["toy_factors"] = "toy_factors"
    dimension: PositiveInt = 20
    iterations: PositiveInt = 1000
    learning_rate: PositiveFloat = 1.0
    seed: int = Field(1, ge=0)
    conditions: dict[str, list[Factor]] = Field({"none": [], "c": ["c"], "bc": ["b", "c"]}, min_length=1)
    report_at: list[int] = [0, 50, 100, 200, 300, 500, 700, 999]


class Thresholds(Spec):
    """When a curve is below a value: the first evaluation with `evaluator`'s loss < value, in sequences."""

    evaluator: str = "fsl_train"
    values: list[PositiveFloat] = [0.6931, 0.6, 0.35, 0.277, 0.1, 0.01]
    report_at: list[Natural] = []


class LearningCurves(Analysis):
    """Train every condition and compare their learning curves.

    thresholds: losses whose first crossing becomes a scalar, and numbers of sequences at which the
    loss becomes one. plateau: width of the band around ln 2, as a share of it, in which a curve is
    said to rest.
    """

    module: ClassVar[str] = "repro.analyses.learning_curves"
    kind: Literal["learning_curves"] = "learning_curves"
    thresholds: Thresholds = Thresholds()
    plateau: PositiveFloat = 0.05


class IclFormation(Analysis):
    """Learning curves of one run, and how strongly each head is an induction or previous-token head.

    checkpoints: how many of the saved ones to measure, those nearest to a linear grid.
    sequences: `all` possible training sequences, or at most so many of them (every n-th).
    """

    module: ClassVar[str] = "repro.analyses.icl_formation"
    splits_over: ClassVar[str | None] = "checkpoints"
    kind: Literal["icl_formation"] = "icl_formation"
    thresholds: Thresholds = Thresholds()
    checkpoints: PositiveInt = 101
    sequences: Literal["all"] | PositiveInt = "all"

    def items(self, of: Of) -> int | None:
        names = list(of("")["conditions"]) or [""]
        return _measured_checkpoints(of(names[0])["training"], self.checkpoints)


class HeadRoles(Analysis):
    """Of each head of one layer at the end of training: alone, removed, and added back in order of strength.

    layer: whose heads; -1 is the last. condition: which trained condition; "" where there is one.
    order: heads in which they are added back; null: by induction strength. also_without: the same once
    more without this head ("strongest", a head, or null).
    """

    module: ClassVar[str] = "repro.analyses.head_roles"
    splits_over: ClassVar[str | None] = "ablations"
    kind: Literal["head_roles"] = "head_roles"
    condition: str = ""
    layer: int = -1
    checkpoint: Literal["last"] | Natural = "last"
    order: list[Head] | None = None
    also_without: Head | Literal["strongest"] | None = "strongest"
    sequences: Literal["all"] | PositiveInt = "all"

    def items(self, of: Of) -> int | None:
        """All ablated, each head alone, each removed, added one by one, and so again without one of them."""
        heads = _heads(of(self.condition))
        if heads is None or (self.order is not None and self.also_without == "strongest"):
            return None  # whether the strongest is in the list shows only when it is known
        added = heads if self.order is None else len(self.order)
        skipped = self.also_without == "strongest" or self.order is None or self.also_without in self.order
        again = 0 if self.also_without is None else added - skipped
        return 1 + 2 * heads + added + again


class Pool(Spec):
    """One initialisation seed. main: the condition with all heads; only: head -> condition with it alone."""

    main: str
    only: dict[Head, str] = {}


class PooledHeads(Analysis):
    """Head strength against what a head does alone, pooled over initialisation seeds.

    pools: name of a seed -> its conditions. Runs with one head are needed for the learning times alone.
    threshold: loss below which a run counts as having learned (0.4 ln 2 in the paper).
    """

    module: ClassVar[str] = "repro.analyses.pooled_heads"
    splits_over: ClassVar[str | None] = "pools"
    kind: Literal["pooled_heads"] = "pooled_heads"
    pools: dict[str, Pool] = Field(min_length=1)
    threshold: PositiveFloat = 0.2773
    evaluator: str = "fsl_train"
    sequences: Literal["all"] | PositiveInt = "all"

    def items(self, of: Of) -> int | None:
        return len(self.pools)


class CircuitSettings(Analysis):
    """Loss and accuracy of trained models under named manipulations, at the end or along checkpoints.

    settings: name -> manipulations that replace those of training; `null` keeps those of training.
    heads in them may be written `previous_token_heads` for the heads of layer 0 whose previous-token
    score is above `previous_token_above`, `other_heads` for the rest of layer 0, and "1:*" for a layer.
    checkpoints: `last`, or how many of the saved ones (nearest to a linear grid).
    baseline: evaluator whose training-time loss is subtracted (interpolated at the checkpoints) to
    give `loss_increase`; null for none. report_at: sequences at which loss, accuracy and loss increase
    become scalars, interpolated between checkpoints.
    """

    module: ClassVar[str] = "repro.analyses.circuit_settings"
    splits_over: ClassVar[str | None] = "pairs of setting and checkpoint"
    kind: Literal["circuit_settings"] = "circuit_settings"
    condition: str = ""
    settings: dict[Name, Manipulations | None] = Field(min_length=1)
    checkpoints: Literal["last"] | PositiveInt = "last"
    previous_token_above: float = 0.4
    baseline: str | None = None
    report_at: list[Natural] = []
    sequences: Literal["all"] | PositiveInt = "all"

    def items(self, of: Of) -> int | None:
        count = 1 if self.checkpoints == "last" else self.checkpoints
        along = _measured_checkpoints(of(self.condition)["training"], count)
        return None if along is None else len(self.settings) * along

    @model_validator(mode="after")
    def _settings_are_manipulations(self) -> Self:
        for name, items in self.settings.items():
            for i, item in enumerate(items or []):
                Manipulation.choose(with_groups(item, _any_group), f"analysis.settings.{name}.{i}")
        return self


def with_groups(item: dict[str, Any], group: Callable[[str], list[str] | None]) -> dict[str, Any]:
    """A manipulation in which names of groups of heads are replaced by their heads.

    group: the heads that a name stands for, or None if it names no group.
    """
    heads = item.get("heads")
    listed = [heads] if isinstance(heads, str) else heads
    if not isinstance(listed, list):
        return item
    named = [(one, group(one) if isinstance(one, str) else None) for one in listed]
    if all(members is None for _, members in named):
        return item
    return {
        **item,
        "heads": [head for one, members in named for head in ([one] if members is None else members)],
    }


def _any_group(name: str) -> list[str] | None:
    is_group = name in (PREVIOUS_TOKEN_HEADS, OTHER_HEADS) or re.fullmatch(r"\d+:\*", name)
    return [] if is_group else None


class Wiring(Analysis):
    """Which heads of layer 0 each head of layer 1 reads, through its pattern (K) or its values (V).

    With one head of layer 1 active: remove each head of layer 0, or keep only it, with patterns or
    values of layer 1 preserved; and composition scores of the weights.
    """

    module: ClassVar[str] = "repro.analyses.wiring"
    splits_over: ClassVar[str | None] = "ablations"
    kind: Literal["wiring"] = "wiring"
    condition: str = ""
    checkpoint: Literal["last"] | Natural = "last"
    sequences: Literal["all"] | PositiveInt = "all"

    def items(self, of: Of) -> int | None:
        """Each head of layer 1 alone, and with each of layer 0 removed or kept; two sites preserved."""
        heads = _heads(of(self.condition))
        return None if heads is None else 2 * (heads + 2 * heads**2)


class CopySpecificity(Analysis):
    """Which labels each head copies: alone, with its own pattern or a perfect one, by label.

    reference: the head whose mistakes others are asked to mend; null: the strongest.
    """

    module: ClassVar[str] = "repro.analyses.copy_specificity"
    splits_over: ClassVar[str | None] = "pairs of setting and head"
    kind: Literal["copy_specificity"] = "copy_specificity"
    condition: str = ""
    checkpoint: Literal["last"] | Natural = "last"
    reference: Head | None = None
    sequences: Literal["all"] | PositiveInt = "all"

    def items(self, of: Of) -> int | None:
        heads = _heads(of(self.condition))
        return None if heads is None else 2 * heads


class Inspect(Analysis):
    """Loss, accuracy and head strengths of a saved checkpoint under any manipulations.

    run: a folder of a run or of a trained model; null: the model that this config trains.
    manipulations: replace those it was trained with; null keeps them.
    """

    module: ClassVar[str] = "repro.analyses.inspect_checkpoint"
    kind: Literal["inspect"] = "inspect"
    run: str | None = None
    condition: str = ""
    checkpoint: Literal["last"] | Natural = "last"
    manipulations: Manipulations | None = None
    sequences: Literal["all"] | PositiveInt = "all"

    @property
    def trains(self) -> bool:
        return self.run is None

    def fingerprint(self) -> dict[str, Any]:
        """The folders of runs and of trained models are named by their hashes, so they may move."""
        return {**super().fingerprint(), "run": self.run and PurePath(self.run).name}


def _heads(specs: Mapping[str, Any]) -> int | None:
    """Heads of a layer, None where the model itself must tell."""
    return getattr(specs["model"], "heads", None)


def _measured_checkpoints(training: Training | None, count: int) -> int | None:
    """How many checkpoints an analysis finds that asks for `count` along a linear grid."""
    if training is None:
        return None
    saved = [int(step) * training.batch for step in checkpoint_steps(training)]
    return len(nearest(saved or [0], count))  # the end is always saved
