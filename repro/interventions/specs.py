"""Which manipulations of a model's activations: the typed config. Imports neither PyTorch nor JAX.

Heads are written "layer:head", both from 0: "1:3" is head 3 of the second layer. [1, 3] and L1H3 mean the
same and give the same hash.
"""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator

from repro.specs import Family

_WRITTEN = re.compile(r"(?:L(?P<l>\d+)H(?P<h>\d+)|(?P<layer>\d+):(?P<head>\d+))", re.IGNORECASE)
_RUN_HASH = re.compile(r"[0-9a-f]{12}")
_SPELLINGS = 'a head as "layer:head", [layer, head] or L1H3 (both from 0)'
Natural = Annotated[int, Field(ge=0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def parse_head(written: Any) -> str:
    """The one spelling "layer:head" of a head. Raises `ValueError` naming the valid spellings."""
    if isinstance(written, int) and not isinstance(written, bool):
        # YAML reads 1:30 without quotes as the sexagesimal number 90.
        guess = f"{written // 60}:{written % 60}" if written >= 60 else "1:3"
        raise ValueError(f'expected {_SPELLINGS}; a number alone is not a head. Quote it: "{guess}"')
    if isinstance(written, list | tuple) and len(written) == 2:
        written = ":".join(str(number) for number in written)
    match = _WRITTEN.fullmatch(written.strip()) if isinstance(written, str) else None
    if match is None:
        raise ValueError(f"expected {_SPELLINGS}")
    layer, head = (number for number in match.groups() if number is not None)
    return f"{int(layer)}:{int(head)}"


def split_head(head: str) -> tuple[int, int]:
    """(layer, head) of a head in its one spelling."""
    layer, index = head.split(":")
    return int(layer), int(index)


def _sorted_once(heads: list[str]) -> list[str]:
    return sorted(set(heads), key=split_head)


Head = Annotated[str, BeforeValidator(parse_head)]
# An integer stands for a head of the last layer, where that is allowed.
LastLayerHead = Annotated[
    int | str, BeforeValidator(lambda w: w if type(w) is int and 0 <= w < 60 else parse_head(w))
]


class Manipulation(Family):
    """A value that replaces activations in the forward pass; several compose (see `ORDER`)."""

    module: ClassVar[str] = "repro.interventions.icl_manipulations"


class OfHeads(Manipulation):
    """A manipulation of the named heads; without any it does nothing."""

    heads: list[Head]

    @field_validator("heads")
    @classmethod
    def _one_order(cls, heads: list[str]) -> list[str]:
        return _sorted_once(heads)


class Preserve(Manipulation):
    """Run the model once untouched, then hold these sites of all layers to what they were there."""

    kind: Literal["preserve"] = "preserve"
    sites: list[Literal["pattern", "v", "q", "k"]]

    @field_validator("sites")
    @classmethod
    def _one_order(cls, sites: list[str]) -> list[str]:
        return sorted(set(sites))


class HeadTemperature(Manipulation):
    """Attention scores of heads of one layer, divided by a temperature.

    As published, the scores of all heads of that layer come from an untouched run (see `ORDER`).
    """

    kind: Literal["head_temperature"] = "head_temperature"
    temperatures: dict[Head, Positive]

    @field_validator("temperatures")
    @classmethod
    def _one_layer(cls, temperatures: dict[str, float]) -> dict[str, float]:
        layers = sorted({split_head(head)[0] for head in temperatures})
        if len(layers) > 1:
            raise ValueError(f"expected heads of one layer, not of layers {', '.join(map(str, layers))}")
        return {head: temperatures[head] for head in _sorted_once(list(temperatures))}


class PerfectCopy(Manipulation):
    """The query's logits of the two context labels are a head's attention scores on them; others -1e9."""

    kind: Literal["perfect_copy"] = "perfect_copy"
    head: Head


class Graft(Manipulation):
    """Part of a trained model, which stays as it is.

    run: folder of a run or of a trained model; checkpoint: after how many sequences, or the last.
    """

    run: Annotated[str, Field(min_length=1)]
    checkpoint: Natural | Literal["last"] = "last"

    def fingerprint(self) -> dict[str, Any]:
        """What of it can change a number. A trained model's folder is named by its hash: it may move."""
        name = PurePath(self.run).name
        return {**self.model_dump(), "run": name if _RUN_HASH.fullmatch(name) else self.run}


class GraftIn(Graft):
    """The residual stream after block `till_layer` is that of another model on the same input.

    That model keeps the manipulations it was trained with.
    """

    kind: Literal["graft_in"] = "graft_in"
    till_layer: Natural

    @property
    def layer(self) -> int:
        """The last block that is replaced."""
        return self.till_layer


class GraftOut(Graft):
    """The residual stream after block `from_layer` goes on in another model, untouched by manipulations."""

    kind: Literal["graft_out"] = "graft_out"
    from_layer: Natural

    @property
    def layer(self) -> int:
        """The last block that is the trained model's own."""
        return self.from_layer


class AblateEmbedding(Manipulation):
    """Token embeddings are zero (added positions stay): use it with what is preserved."""

    kind: Literal["ablate_embedding"] = "ablate_embedding"


class AblateHeads(OfHeads):
    """Values of heads are zero, so that they add nothing."""

    kind: Literal["ablate_heads"] = "ablate_heads"


class PreviousTokenHeads(OfHeads):
    """Every token attends to the one before it with weight `strength`, to itself with the rest."""

    kind: Literal["previous_token_heads"] = "previous_token_heads"
    strength: Finite = 1.0
    only_label: bool = False


class InductionHeads(OfHeads):
    """The query attends to the label token that is its own label with weight `strength`, to the other
    label with the rest. The induction strength that papers plot is 2 * strength - 1.
    """

    kind: Literal["induction_heads"] = "induction_heads"
    strength: Finite = 1.0


class MatchHeads(OfHeads):
    """The query attends to label tokens by the cosine similarity of their exemplars with the query:
    softmax(similarity / temperature), or the most similar one at temperature 0.
    """

    kind: Literal["match_heads"] = "match_heads"
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class ForbidPreviousToken(OfHeads):
    """No token attends to the one before it."""

    kind: Literal["forbid_previous_token"] = "forbid_previous_token"
    only_label: bool = False


class SilenceNonLabel(Manipulation):
    """Heads of the last layer, by number: their query attends to label tokens only."""

    kind: Literal["silence_non_label"] = "silence_non_label"
    heads: list[LastLayerHead]

    @field_validator("heads")
    @classmethod
    def _one_order(cls, heads: list[int | str]) -> list[int | str]:
        numbers = sorted({head for head in heads if isinstance(head, int)})
        return [*numbers, *_sorted_once([head for head in heads if isinstance(head, str)])]


class PerfectPreviousTokenInput(Manipulation):
    """The first layer is replaced by what a perfect previous-token head would hand on: patterns of the
    second layer are computed from embeddings moved on by one token, its values from the embeddings.
    """

    kind: Literal["perfect_previous_token_input"] = "perfect_previous_token_input"


# Manipulations are applied in this order, whatever their order in the config: where two touch the same
# entry, the later one counts. (What is done to attention scores acts before what is done to patterns.)
ORDER: tuple[type[Manipulation], ...] = (
    PerfectPreviousTokenInput,
    Preserve,
    HeadTemperature,
    PerfectCopy,
    GraftIn,
    AblateEmbedding,
    AblateHeads,
    PreviousTokenHeads,
    InductionHeads,
    MatchHeads,
    ForbidPreviousToken,
    SilenceNonLabel,
    GraftOut,
)


def fingerprint(manipulation: Manipulation) -> dict[str, Any]:
    """What of a manipulation can change a number: grafts are named by what they take, not where it is."""
    graft = isinstance(manipulation, Graft)
    return manipulation.fingerprint() if graft else manipulation.model_dump(mode="json")
