"""What analyses of models that are tuned on a text can be told. Imports no PyTorch."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import PositiveInt

from repro.analyses.base_specs import Analysis
from repro.analyses.influence_costs import sizes
from repro.costs import Cost, Work


class TextTraining(Analysis):
    """How well a model predicts the queries, and how it came to: losses while it was tuned, perplexities.

    first: so many of the first queries have a perplexity of their own.
    """

    module: ClassVar[str] = "repro.analyses.text_training"
    models: ClassVar[tuple[str, ...]] = ("hf", "text_organism", "fine_tuned")
    kind: Literal["text_training"] = "text_training"
    first: PositiveInt = 50

    def cost(self, subject: Any, data: Any) -> Cost:
        """A pass over the queries."""
        (_, queries, length), _ = sizes(data)
        return Cost((Work("losses of the queries", queries, length, unembedded=length, batch=25),))
