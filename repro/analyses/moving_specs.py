"""What moving pieces can be told. Imports no PyTorch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from repro.analyses.circuit_specs import LmAnalysis
from repro.analyses.head_specs import LmHead
from repro.errors import UserError
from repro.specs import Spec

PieceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_:+=-]*$")]


class Feed(Spec):
    """Heads that are fed from other prompts: their `site` at the named position, as it is there.

    chain: flips that make those prompts from the clean ones; null: the data's corrupt prompts.
    k and v count key/value heads.
    """

    heads: list[LmHead] = Field(min_length=1)
    at: str = "END"
    site: Literal["z", "q", "k", "v"] = "z"
    chain: list[str] | None = None


class MovingPieces(LmAnalysis):
    """What the model says, and where heads look, when chosen heads are fed from other prompts.

    pieces: name -> feeds, all made at once; what follows them is recomputed. watch: heads whose attention
    from `query` to `keys` is measured (keys null: those of IO, S1, S2 that the data has). fit: piece ->
    signals it carries, by name; the logit difference is fitted by their sum (`original` is a piece, too).
    """

    module: ClassVar[str] = "repro.analyses.moving_pieces"
    kind: Literal["moving_pieces"] = "moving_pieces"
    pieces: dict[PieceName, Annotated[list[Feed], Field(min_length=1)]] = Field(min_length=1)
    watch: list[LmHead] = []
    query: str = "END"
    keys: list[str] | None = None
    fit: dict[str, dict[str, float]] = {}
    batch: PositiveInt = 64

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if "original" in self.pieces:
            raise UserError("analysis.pieces: `original` is the run without feeds. Give another name")
        unknown = [name for name in self.fit if name not in (*self.pieces, "original")]
        if unknown:
            valid = ", ".join(["original", *self.pieces])
            raise UserError(f"analysis.fit: {', '.join(unknown)} is no piece. Valid: {valid}")
        columns = [sorted(row) for row in self.fit.values()]
        if any(row != columns[0] for row in columns):
            raise UserError("analysis.fit: every piece must have the same signals")
        return self
