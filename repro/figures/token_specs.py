"""What a figure of coloured tokens can be told. Imports no Matplotlib."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import PositiveInt

from repro.figures.specs import Figure, Panel


class Tokens(Figure, Panel):
    """A text with a colour for each token. array: numbers from -1 to 1 over tokens, labelled NUMBER:TEXT.

    letters: of a line.
    """

    module: ClassVar[str] = "repro.figures.tokens"
    kind: Literal["tokens"] = "tokens"
    array: str = "shown"
    letters: PositiveInt = 90
    colour_label: str = ""
