"""What the analyses of in-context-learning transformers cost, from the config alone. Imports no JAX.

Each measures losses over every training sequence, some of them heads' scores besides, for many ablations or
checkpoints (see `repro.analyses.icl_measures`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from repro.analyses import specs
from repro.costs import Cost, Work, not_modelled
from repro.data.specs import Sequences
from repro.models.icl_shape import IclShape

# As in repro.analyses.icl_measures, which is too heavy to import here.
WORTH_SHARING, BATCH = 1_000_000, 1024
# Of the time, where common prefixes are computed once (benchmarks/head_scores.py: 1/4 to 1/5).
_SHARED = 0.22
# These need a pass of the untouched model besides their own.
_TWO_PASSES = ("preserve", "head_temperature", "perfect_previous_token_input", "graft_in", "graft_out")


@dataclass(frozen=True)
class Trainee:
    """A model that a config trains.

    classes, exemplars: of training; checkpoints: how many are saved; manipulations: their kinds.
    """

    shape: IclShape
    sequences: Sequences
    classes: int
    checkpoints: int
    manipulations: tuple[str, ...] = ()
    exemplars: int = 0

    @property
    def length(self) -> int:
        """Tokens of a sequence: exemplars and labels, and the query."""
        return 2 * self.sequences.context + 1

    def every_sequence(self, most: int | str) -> int:
        """Training sequences: ordered pairs of classes and of labels, and either class asked for."""
        count = self.classes * (self.classes - 1) * 2 * self.sequences.pair_counts()["train"] * 2
        return count if most == "all" else min(count, int(most))

    def losses(self, says: str, most: int | str, cases: float = 1, kinds: Sequence[str] = ()) -> Work:
        """Loss of every sequence in so many cases; kinds: of the manipulations in all of them."""
        passes = 2 if set(kinds) & set(_TWO_PASSES) else 1
        return Work(says, self.every_sequence(most), self.length, forwards=cases * passes, batch=BATCH)

    def scores(self, most: int | str, models: int = 1, plain: bool = True) -> Work:
        """Loss of every sequence and strengths of all heads, of so many models; plain: not manipulated."""
        count = self.every_sequence(most)
        shared = plain and models * count >= WORTH_SHARING
        return Work("head scores", count, self.length, forwards=models, unembedded=self.length, batch=BATCH,
                    share=_SHARED if shared else 1.0)  # fmt: skip


Trainees = Mapping[str, Trainee]


def cost(spec: specs.Analysis, subject: Any, data: Any) -> Cost:
    """What an analysis costs, as its own `cost` says, or one of this module; else not modelled."""
    own = getattr(spec, "cost", None)
    if own is not None:
        return own(subject, data)
    if isinstance(spec, specs.Inspect) and spec.run is not None:
        return not_modelled("inspect", "the model lies in another run")
    known, kind = _KNOWN.get(type(spec)), str(getattr(spec, "kind", type(spec).__name__))
    if known is not None and not isinstance(spec, specs.ToyFactors | specs.LearningCurves):
        if not isinstance(subject, Mapping) or not subject:
            return not_modelled(kind, "it looks at models that the config trains, and there are none")
    return known(spec, subject) if known else not_modelled(kind)


def _toy(spec: specs.ToyFactors, _: Any) -> Cost:
    # Three inner products and norms of three vectors, and their gradients, a step.
    steps = spec.iterations * len(spec.conditions)
    return Cost(flops=60.0 * spec.dimension * steps, lines=(f"{steps} steps on three vectors",))


def _curves(spec: specs.LearningCurves, _: Trainees) -> Cost:
    return Cost(lines=("learning curves: read from the history, no pass",))


def _formation(spec: specs.IclFormation, subject: Trainees) -> Cost:
    (one,) = subject.values()
    models = min(spec.checkpoints, one.checkpoints)
    return Cost((one.scores(spec.sequences, models, plain=not one.manipulations),))


def _roles(spec: specs.HeadRoles, subject: Trainees) -> Cost:
    one = _condition(spec, subject)
    heads = one.shape.heads
    added = heads if spec.order is None else len(spec.order)
    cases = 1 + 2 * heads + added + (added - 1 if spec.also_without is not None else 0)
    most = spec.sequences
    return Cost((one.scores(most), one.losses("no first layer", most, 1, ["preserve"]),
                 one.losses("ablations of heads", most, cases)))  # fmt: skip


def _pooled(spec: specs.PooledHeads, subject: Trainees) -> Cost:
    one, most = subject[next(iter(spec.pools.values())).main], spec.sequences
    pools = len(spec.pools)
    alone = one.losses("heads alone", most, pools * one.shape.heads)
    return Cost((replace(one.scores(most), forwards=pools), alone))


def _settings(spec: specs.CircuitSettings, subject: Trainees) -> Cost:
    one, most = _condition(spec, subject), spec.sequences
    along = 1 if spec.checkpoints == "last" else min(spec.checkpoints, one.checkpoints)
    works = [one.scores(most, plain=not one.manipulations)]
    for name, items in spec.settings.items():
        kinds = one.manipulations if items is None else [str(item.get("kind")) for item in items]
        works.append(one.losses(f"setting {name}", most, along, kinds))
    return Cost(tuple(works))


def _wiring(spec: specs.Wiring, subject: Trainees) -> Cost:
    one = _condition(spec, subject)
    heads = one.shape.heads
    cases = 2 * (heads + 2 * heads**2)  # patterns or values preserved; alone, removed, kept
    return Cost((one.losses("one head of layer 1, one of layer 0", spec.sequences, cases),
                 one.losses("what is preserved", spec.sequences, 2)))  # fmt: skip


def _copies(spec: specs.CopySpecificity, subject: Trainees) -> Cost:
    one = _condition(spec, subject)
    alone = one.losses("heads alone, own and perfect pattern", spec.sequences, 2 * one.shape.heads)
    return Cost((one.scores(spec.sequences), alone))


def _inspect(spec: specs.Inspect, subject: Trainees) -> Cost:
    one = _condition(spec, subject)
    return Cost((one.scores(spec.sequences, plain=not (spec.manipulations or one.manipulations)),))


def _condition(spec: Any, subject: Trainees) -> Trainee:
    """The condition asked for; any, where the name is wrong: the run itself says so better."""
    return subject.get(spec.condition) or next(iter(subject.values()))


_KNOWN: dict[type, Callable[[Any, Any], Cost]] = {
    specs.ToyFactors: _toy,
    specs.LearningCurves: _curves,
    specs.IclFormation: _formation,
    specs.HeadRoles: _roles,
    specs.PooledHeads: _pooled,
    specs.CircuitSettings: _settings,
    specs.Wiring: _wiring,
    specs.CopySpecificity: _copies,
    specs.Inspect: _inspect,
}
