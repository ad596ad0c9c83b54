"""Forward passes of the in-context-learning transformer under manipulations (sheet C.12).

`build` turns manipulations into a function of model and inputs. It may need several passes: one of the
untouched model, whose values others preserve, and one of each grafted model. Gradients flow through all
passes of the model itself; a grafted model is a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from repro.errors import UserError
from repro.interventions import icl_edits
from repro.interventions.compatibility import resolve
from repro.interventions.icl_edits import Situation, replace_by
from repro.interventions.specs import (
    AblateHeads,
    Graft,
    GraftIn,
    GraftOut,
    Manipulation,
    PerfectCopy,
    PerfectPreviousTokenInput,
    split_head,
)
from repro.models.icl_transformer import Edit, IclTransformerModel, Place, Tap, forward
from repro.models.specs import IclTransformer

_AFTER_BLOCKS = ("final_norm", "logits")


class Inputs(NamedTuple):
    """A batch of sequences; the last item is the query, whose label the model does not see.

    examples: features. example_embedding: the same, already projected by the model at hand (then
    `examples` is needed only where a manipulation or a grafted model reads the features themselves).
    """

    labels: Int[Array, "batch item"]
    examples: Float[Array, "batch item dim"] | None = None
    example_embedding: Float[Array, "batch item channel"] | None = None


Pass = tuple[Float[Array, "batch position output"], dict[Place, Array]]


class Forward(Protocol):
    """A forward pass: logits (batch position output), and the values of the places in `read`.

    With `query_only` there is one position, the query, and the last block's values for queries (all of its
    sites but resid_pre, attn_in, k and v) have its row only.
    """

    def __call__(
        self,
        model: IclTransformerModel,
        inputs: Inputs,
        read: Collection[Place] = (),
        query_only: bool = True,
    ) -> Pass: ...


# Of a run's folder and a checkpoint: the model, and its forward pass under its own manipulations.
LoadModel = Callable[[str, int | str], tuple[IclTransformerModel, Forward]]


def untouched(
    model: IclTransformerModel, inputs: Inputs, read: Collection[Place] = (), query_only: bool = True
) -> Pass:
    """The model's own forward pass."""
    return _edited(model, inputs, {}, read, query_only)


def build(manipulations: Sequence[Manipulation], load_model: LoadModel | None = None) -> Forward:
    """The forward pass under `manipulations`, applied in the order of `specs.ORDER`.

    load_model: called once, here, for each graft. The forward pass raises `UserError` for what
    `compatibility.resolve` refuses, when it is called or traced.
    """
    if not manipulations:
        return untouched
    grafts = {one: _loaded(one, load_model) for one in manipulations if isinstance(one, Graft)}

    def manipulated(
        model: IclTransformerModel, inputs: Inputs, read: Collection[Place] = (), query_only: bool = True
    ) -> Pass:
        ordered = _resolved(manipulations, model, inputs)
        if any(isinstance(one, PerfectPreviousTokenInput) for one in ordered):
            return _perfect_previous_token_input(ordered, model, inputs, read, query_only)
        return _composed(ordered, grafts, model, inputs, read, query_only)

    return manipulated


def _loaded(graft: Graft, load_model: LoadModel | None) -> tuple[IclTransformerModel, Forward]:
    if load_model is None:
        raise UserError(f"{graft.model_dump()['kind']}: models cannot be loaded here. Leave it out")
    return load_model(graft.run, graft.checkpoint)


def _resolved(
    manipulations: Sequence[Manipulation], model: IclTransformerModel, inputs: Inputs
) -> tuple[Manipulation, ...]:
    shape = IclTransformer(
        depth=len(model.blocks), heads=model.heads, width=model.width, positions="sinusoidal"
    )
    return resolve(manipulations, shape, context=inputs.labels.shape[1] - 1)


def _edited(
    model: IclTransformerModel,
    inputs: Inputs,
    edits: dict[Place, list[Edit]],
    read: Collection[Place],
    query_only: bool,
) -> Pass:
    tap = Tap(edits, read)
    logits = forward(model, inputs.examples, inputs.labels, tap, inputs.example_embedding, query_only)
    return logits, tap.values


def _together(edits: Iterable[dict[Place, Edit]]) -> dict[Place, list[Edit]]:
    united: dict[Place, list[Edit]] = {}
    for some in edits:
        for place, edit in some.items():
            united.setdefault(place, []).append(edit)
    return united


def _composed(
    ordered: Sequence[Manipulation],
    grafts: dict[Graft, tuple[IclTransformerModel, Forward]],
    model: IclTransformerModel,
    inputs: Inputs,
    read: Collection[Place],
    query_only: bool,
) -> Pass:
    """At most one pass of the untouched model, one of the manipulated one, and one of each graft."""
    graft_out = next((one for one in ordered if isinstance(one, GraftOut)), None)
    if graft_out is not None:
        rest = [one for one in ordered if one is not graft_out]
        frozen, _ = grafts[graft_out]
        return _into(frozen, graft_out.layer, rest, grafts, model, inputs, read, query_only)

    depth = len(model.blocks)
    needed = {place: one for one in ordered for place in icl_edits.reads(one, depth)}
    base: dict[Place, Array] = {}
    if needed:
        # Perfect copying reads the query's row alone; all else replaces as many rows as the final pass has.
        only_copies = all(isinstance(one, PerfectCopy) for one in needed.values())
        _, base = untouched(model, inputs, needed, query_only or only_copies)
    situation = Situation(inputs.labels, inputs.examples, base, depth)
    edits = [
        _grafted_in(one, *grafts[one], inputs, last=one.layer == depth - 1 and query_only)
        if isinstance(one, GraftIn)
        else icl_edits.edits(one, situation)
        for one in ordered
    ]
    return _edited(model, inputs, _together(edits), read, query_only)


def _grafted_in(
    graft: GraftIn, source: IclTransformerModel, source_forward: Forward, inputs: Inputs, last: bool
) -> dict[Place, Edit]:
    """Replace the output of block `layer` by that of the other model on the same input."""
    place = ("resid_post", graft.layer)
    if inputs.examples is None:
        raise UserError("graft_in: needs the features themselves, got projected ones. Give Inputs.examples")
    if graft.layer >= len(source.blocks):
        raise UserError(
            f"graft_in: layer {graft.layer}, but {graft.run} has layers 0 to {len(source.blocks) - 1}"
        )
    _, values = source_forward(source, Inputs(inputs.labels, inputs.examples), {place}, last)
    stream = values[place]

    def edit(value: Array, positions: np.ndarray) -> Array:
        _refuse_other_width(graft, stream.shape[-1], value.shape[-1])
        return stream if stream.shape[1] == len(positions) else stream[:, positions]

    return {place: edit}


def _into(
    frozen: IclTransformerModel,
    layer: int,
    rest: Sequence[Manipulation],
    grafts: dict[Graft, tuple[IclTransformerModel, Forward]],
    model: IclTransformerModel,
    inputs: Inputs,
    read: Collection[Place],
    query_only: bool,
) -> Pass:
    """Blocks up to `layer` of the model, then the later ones of `frozen` and its readout."""
    depth = len(frozen.blocks)
    if layer >= depth:
        raise UserError(f"graft_out: layer {layer}, but the other model has layers 0 to {depth - 1}")
    own = {place for place in read if _is_up_to(place, layer)}
    stream_place = ("resid_post", layer)
    row_suffices = query_only and layer == depth - 1
    _, values = _composed(rest, grafts, model, inputs, own | {stream_place}, row_suffices)
    stream = values[stream_place]
    _refuse_other_width(None, frozen.width, stream.shape[-1])
    # Its own embedding is replaced with all else up to `layer`, so nothing needs to be projected.
    blank = jnp.zeros((*inputs.labels.shape, frozen.width), stream.dtype)
    replaced = Inputs(inputs.labels, None, blank)
    logits, later = _edited(
        frozen, replaced, {stream_place: [replace_by(stream)]}, set(read) - own, query_only
    )
    return logits, {**{place: values[place] for place in own}, **later}


def _is_up_to(place: Place, layer: int) -> bool:
    site, at = place
    return site not in _AFTER_BLOCKS if at is None else at <= layer


def _refuse_other_width(graft: GraftIn | None, grafted: int, width: int) -> None:
    if grafted != width:
        name = "graft_out" if graft is None else "graft_in"
        raise UserError(f"{name}: widths must agree; the other model has {grafted}, this one {width}")


def _perfect_previous_token_input(
    ordered: Sequence[Manipulation],
    model: IclTransformerModel,
    inputs: Inputs,
    read: Collection[Place],
    query_only: bool,
) -> Pass:
    """Patterns of the second layer from embeddings moved on by one token, values from the embeddings.

    The first block is no part of the result. With perfect copying, the head's scores come from the pass
    with the moved embeddings.
    """
    stream, embedded, pattern = ("resid_post", 0), ("embedding", None), ("pattern", 1)
    embedding = untouched(model, inputs, {embedded}, query_only)[1][embedded]
    moved = jnp.concatenate([embedding[:, :1], embedding[:, :-2], embedding[:, -1:]], axis=1)

    copy = next((one for one in ordered if isinstance(one, PerfectCopy)), None)
    layer, head = split_head(copy.head) if copy else (1, 0)
    scores = ("attn_scores", layer)
    _, seen = _edited(model, inputs, {stream: [replace_by(moved)]}, {pattern, scores}, query_only)

    situation = Situation(inputs.labels, inputs.examples, {}, len(model.blocks))
    edits: list[dict[Place, Edit]] = [{stream: replace_by(embedding), pattern: replace_by(seen[pattern])}]
    if copy:
        edits.append({("logits", None): icl_edits.copy_scores(situation, seen[scores][:, head])})
    edits += [icl_edits.edits(one, situation) for one in ordered if isinstance(one, AblateHeads)]
    return _edited(model, inputs, _together(edits), read, query_only)
