"""What prefix matching and copying can be told. Imports no PyTorch."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import PositiveInt

from repro.analyses.base_specs import Analysis, Of
from repro.costs import Cost, Work
from repro.specs import Spec

ASSUMED = (100, 125)  # sequences and tokens where only a file tells


class PrefixOptions(Spec):
    """position1_quirk: the last token of every block also counts its attention to the very first token of the
    first block, which follows no earlier copy; the released formula does, its pseudo-code does not."""

    position1_quirk: bool = True


class CopyingOptions(Spec):
    """source: what a head's output at a token is made of: the token's own value (as released), or what its
    attention mixes (as the pseudo-code reads). scale: of scores, raw in [0, 1], or signed, 2 x - 1 (Olsson et
    al. 2022)."""

    source: Literal["value_of_query", "attention_output"] = "value_of_query"
    scale: Literal["raw", "signed"] = "raw"


class SequenceAnalysis(Analysis):
    """A score of every head on every sequence; it can be split over sequences."""

    models: ClassVar[tuple[str, ...]] = ("hf", "organism")
    splits_over: ClassVar[str | None] = "sequences"

    @property
    def trains(self) -> bool:
        return False

    def items(self, of: Of) -> int | None:
        return getattr(of("")["data"], "count", None)


def _lengths(data: Any) -> tuple[list[int], str]:
    """Tokens of every sequence, start token included, and what is to be said of that."""
    blocks = getattr(data, "lengths", None)
    if blocks is None:
        count, length = ASSUMED
        return [length] * count, f"{count} sequences of {length} tokens assumed, since only the file tells"
    lengths = [1 + data.repeats * block for block in blocks]
    return lengths, f"{len(lengths)} sequences of {min(lengths)} to {max(lengths)} tokens"


class PrefixMatching(SequenceAnalysis):
    """Attention of repeated tokens to what followed them in earlier copies.

    batch: sequences in one pass; it changes memory and speed, and no number beyond rounding.
    """

    module: ClassVar[str] = "repro.analyses.prefix_matching"
    kind: Literal["prefix_matching"] = "prefix_matching"
    prefix: PrefixOptions = PrefixOptions()
    batch: PositiveInt = 1

    def fingerprint(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"batch"})

    def cost(self, subject: Any, data: Any) -> Cost:
        """One pass a sequence, without logits."""
        lengths, line = _lengths(data)
        mean = round(sum(lengths) / len(lengths))
        work = Work("attention patterns", len(lengths), mean, unembedded=0, batch=self.batch)
        return Cost((work,), lines=(line,))


class Copying(SequenceAnalysis):
    """Whether what a head writes at a token raises the token it attends to, among the tokens so far.

    Every layer is given the embeddings, as if it were the first.
    """

    module: ClassVar[str] = "repro.analyses.copying"
    kind: Literal["copying"] = "copying"
    copying: CopyingOptions = CopyingOptions()

    def cost(self, subject: Any, data: Any) -> Cost:
        """Per layer the attention projections, and all heads' outputs along the tokens of the sequence."""
        lengths, line = _lengths(data)
        width, layers = subject.width, subject.layers
        flops = sum(layers * (8 * n * width**2 + 2 * n * width**2 + 4 * n * n * width) for n in lengths)
        mean = round(sum(lengths) / len(lengths))
        work = Work("embeddings (one whole pass)", len(lengths), mean, unembedded=0)
        return Cost((work,), float(flops), (line,))
