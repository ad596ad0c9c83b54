"""Which manipulations fit together, and to which model: checked before any work starts, without JAX."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from repro.errors import UserError
from repro.interventions.specs import (
    ORDER,
    AblateHeads,
    ForbidPreviousToken,
    GraftIn,
    GraftOut,
    HeadTemperature,
    InductionHeads,
    Manipulation,
    MatchHeads,
    OfHeads,
    PerfectCopy,
    PerfectPreviousTokenInput,
    PreviousTokenHeads,
    SilenceNonLabel,
    split_head,
)
from repro.models.specs import IclTransformer

# Kinds that may stand in one list several times, with other heads each.
_REPEATABLE = (AblateHeads, PreviousTokenHeads, InductionHeads, MatchHeads, ForbidPreviousToken)
_DISJOINT = (
    (PreviousTokenHeads, InductionHeads),
    (PreviousTokenHeads, ForbidPreviousToken),
    *((kind, kind) for kind in _REPEATABLE if kind is not AblateHeads),
)
_TWO_PAIRS = (InductionHeads, PerfectCopy, PerfectPreviousTokenInput)


def resolve(
    manipulations: Sequence[Manipulation],
    model: IclTransformer,
    context: int,
    where: str = "manipulations",
) -> tuple[Manipulation, ...]:
    """The manipulations in the order of their application, every head in its one spelling.

    context: exemplar-label pairs before the query. Lists that mean the same give equal results.
    Raises `UserError` if two of them contradict each other, or a head, layer or number of pairs does
    not suit the model.
    """
    _refuse_contradictions(manipulations, where)
    _refuse_wrong_shapes(manipulations, model, context, where)
    settled = [_with_layer(manipulation, model.depth - 1) for manipulation in manipulations]
    for manipulation in settled:
        _refuse_missing_heads(manipulation, model, where)
    return tuple(sorted(settled, key=lambda one: (ORDER.index(type(one)), one.model_dump_json())))


def check(
    manipulations: Sequence[Manipulation],
    model: IclTransformer,
    context: int,
    where: str = "manipulations",
) -> None:
    """As `resolve`, for the errors alone."""
    resolve(manipulations, model, context, where)


def in_order(manipulations: Iterable[Manipulation]) -> list[Manipulation]:
    """The manipulations in the order of their application."""
    return sorted(manipulations, key=lambda one: ORDER.index(type(one)))


def _refuse_contradictions(manipulations: Sequence[Manipulation], where: str) -> None:
    kinds = Counter(type(one) for one in manipulations)
    for kind, count in kinds.items():
        if count > 1 and not issubclass(kind, _REPEATABLE):
            raise UserError(f"{where}: {_name(kind)} at most once, got {count}. Put all of it into one entry")
    alone = {PerfectPreviousTokenInput, PerfectCopy, AblateHeads}
    if PerfectPreviousTokenInput in kinds and not alone.issuperset(kinds):
        others = ", ".join(sorted(_name(kind) for kind in set(kinds) - alone))
        raise UserError(
            f"{where}: perfect_previous_token_input got {others} besides it."
            " Valid: perfect_copy, ablate_heads"
        )
    if PerfectCopy in kinds and GraftOut in kinds:
        raise UserError(f"{where}: perfect_copy and graft_out both decide the logits. Valid: one of the two")
    for first, second in _DISJOINT:
        for head in _shared(manipulations, first, second):
            names = " and ".join(sorted({_name(first), _name(second)}))
            raise UserError(
                f"{where}: head {head} got contradicting entries of {names}. Valid: name it in one of them"
            )


def _shared(manipulations: Sequence[Manipulation], first: type[OfHeads], second: type[OfHeads]) -> list[str]:
    """Heads that two entries, one of each kind, have in common."""
    pairs = [
        set(one.heads) & set(other.heads)
        for i, one in enumerate(manipulations)
        for j, other in enumerate(manipulations)
        if i != j and isinstance(one, first) and isinstance(other, second)
    ]
    return sorted(set().union(*pairs))


def _refuse_wrong_shapes(
    manipulations: Sequence[Manipulation], model: IclTransformer, context: int, where: str
) -> None:
    for one in manipulations:
        if isinstance(one, _TWO_PAIRS) and context != 2:
            raise UserError(
                f"{where}: {_name(type(one))} is defined for two exemplar-label pairs, got a context of"
                f" {context}. Valid: sequences.context=2"
            )
        if isinstance(one, PerfectPreviousTokenInput) and model.depth != 2:
            raise UserError(
                f"{where}: perfect_previous_token_input is defined for two layers, got model.depth="
                f"{model.depth}. Valid: model.depth=2"
            )
    if any(isinstance(one, PerfectPreviousTokenInput) for one in manipulations):
        ablated = [head for one in manipulations if isinstance(one, AblateHeads) for head in one.heads]
        early = [head for head in ablated if split_head(head)[0] == 0]
        if early:
            raise UserError(
                f"{where}: ablate_heads got {', '.join(early)}, but perfect_previous_token_input replaces"
                " layer 0. Valid: heads of layer 1"
            )


def _with_layer(manipulation: Manipulation, last: int) -> Manipulation:
    """Heads of the last layer that are given by number alone, as "layer:head"."""
    if not isinstance(manipulation, SilenceNonLabel):
        return manipulation
    full = [head if isinstance(head, str) else f"{last}:{head}" for head in manipulation.heads]
    return manipulation.model_copy(update={"heads": sorted(set(full), key=split_head)})


def _refuse_missing_heads(manipulation: Manipulation, model: IclTransformer, where: str) -> None:
    name = _name(type(manipulation))
    for head in heads_of(manipulation):
        layer, index = split_head(head)
        if layer >= model.depth or index >= model.heads:
            raise UserError(
                f"{where}: {name} got head {head}, which the model does not have."
                f" Valid: layers 0 to {model.depth - 1}, heads 0 to {model.heads - 1}, written layer:head"
            )
        if isinstance(manipulation, SilenceNonLabel) and layer != model.depth - 1:
            raise UserError(
                f"{where}: {name} got head {head}. Valid: heads of the last layer, {model.depth - 1}"
            )
    if isinstance(manipulation, GraftIn | GraftOut) and manipulation.layer >= model.depth:
        raise UserError(f"{where}: {name} got layer {manipulation.layer}. Valid: 0 to {model.depth - 1}")


def heads_of(manipulation: Manipulation) -> list[str]:
    """The heads it names, as "layer:head"; none if it is about other things."""
    if isinstance(manipulation, HeadTemperature):
        return list(manipulation.temperatures)
    if isinstance(manipulation, PerfectCopy):
        return [manipulation.head]
    return [str(head) for head in getattr(manipulation, "heads", [])]


def _name(kind: type[Manipulation]) -> str:
    return kind.model_fields["kind"].default
