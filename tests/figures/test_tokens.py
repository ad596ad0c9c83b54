"""A text in colour: every token is there, in order, red above zero and blue below."""

from __future__ import annotations

import numpy as np

from repro.figures.draw import figure
from repro.figures.specs import Figure
from repro.results import NamedArray, Result


def test_every_token_is_drawn_in_its_colour() -> None:
    pieces = ["The", " lob", "ster", " : a", "\n"]
    axes = {"position": [f"{number}:{piece}" for number, piece in enumerate(pieces)]}
    result = Result({}, {"shown": NamedArray(np.array([0.0, 1.0, -1.0, 0.2, 0.0]), axes)})
    spec = Figure.choose({"kind": "tokens", "letters": 8}, "figures.x")
    (place, *_) = figure(spec, [result]).axes
    assert [text.get_text() for text in place.texts] == ["The", " lob", "ster", " : a", "↵"]
    red, _, blue = (place.patches[1].get_facecolor()[channel] for channel in range(3))
    assert red > 0.3 and blue < red
    red, _, blue = (place.patches[2].get_facecolor()[channel] for channel in range(3))
    assert blue > 0.3 and red < blue
    # Lines of at most eight letters: 3 + 4, then 4 + 4, then 1.
    assert [text.get_position()[1] for text in place.texts] == [0.5, 0.5, 1.5, 1.5, 2.5]
