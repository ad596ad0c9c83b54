"""Forward passes of the in-context-learning transformer under manipulations (sheet C.12)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, Protocol

from jaxtyping import Array, Float, Int

from repro.interventions.specs import Manipulation
from repro.models.icl_transformer import IclTransformerModel, Place, Tap, forward


class Inputs(NamedTuple):
    """A batch of sequences; the last item is the query, whose label the model does not see.

    examples: features. example_embedding: the same, already projected by the model at hand (then
    `examples` is needed only where a manipulation or another model reads the features themselves).
    """

    labels: Int[Array, "batch item"]
    examples: Float[Array, "batch item dim"] | None = None
    example_embedding: Float[Array, "batch item channel"] | None = None


class Forward(Protocol):
    """A forward pass: logits (batch position output), and the values of the places in `read`.

    With `query_only` there is one position, the query, and values of the last block have its row only.
    """

    def __call__(
        self,
        model: IclTransformerModel,
        inputs: Inputs,
        read: Collection[Place] = (),
        query_only: bool = True,
    ) -> tuple[Float[Array, "batch position output"], dict[Place, Array]]: ...


LoadModel = Callable[[str, "int | str"], tuple[IclTransformerModel, Forward]]


def untouched(
    model: IclTransformerModel, inputs: Inputs, read: Collection[Place] = (), query_only: bool = True
) -> tuple[Float[Array, "batch position output"], dict[Place, Array]]:
    """The model's own forward pass."""
    tap = Tap(read=read)
    logits = forward(model, inputs.examples, inputs.labels, tap, inputs.example_embedding, query_only)
    return logits, tap.values


def build(manipulations: Sequence[Manipulation], load_model: LoadModel | None = None) -> Forward:
    """The forward pass under `manipulations`, which `compatibility.resolve` has found sound."""
    if not manipulations:
        return untouched
    raise NotImplementedError
