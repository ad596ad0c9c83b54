"""What all choices of model have in common. Imports neither PyTorch nor JAX."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from repro.errors import UserError
from repro.specs import Family

Positive = Annotated[int, Field(ge=1)]


class Model(Family):
    """A choice of model. `module` has the `load` of models that are not trained together with an experiment.

    embedded: what reports say of a stand-in for the paper's models; empty where it is none.
    """

    embedded: ClassVar[str] = ""


def check_heads(heads: int, width: int) -> None:
    """Raises `UserError` if the width of the residual stream cannot be shared among so many heads."""
    if width % heads:
        raise UserError(
            f"model.heads: must divide model.width; got {heads} heads and width {width}."
            f" Valid: {', '.join(str(n) for n in range(1, width + 1) if width % n == 0)}"
        )
