"""What attention knockout and the search for known facts can be told. Imports no PyTorch.

`batch` is the number of prompts in one pass: it changes memory and speed, and no number beyond rounding.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from repro.analyses.base_specs import Analysis, Of
from repro.costs import Cost, Work

Natural = Annotated[int, Field(ge=0)]
Set = Literal[
    "subject", "non_subject", "last", "first_subject", "last_subject", "relation", "non_subject_and_last",
    "all", "none",
]  # fmt: skip
TOKENS = 10  # of a prompt on average (9.7 in the published set, GPT-2's tokenizer)


class AttentionKnockout(Analysis):
    """Which positions the last one reads, and where in depth: edges into it are cut in windows of layers.

    sets: of positions cut together (see `FactBatch.positions`). window: layers of a window, at every centre;
    cut off at the model's ends, so it may be larger than the model; auto: about a fifth of the layers, which
    is 9 of 48 and 5 of 28 as published, and 1 of 4. sweep: further sizes of windows.
    maps: prompts (numbers in the data) for which every position is cut alone, with windows of `map_window`
    (auto: 10 of 48 layers, as published).
    nothing_left: what the last position attends to where a layer has nothing left: all that it saw before,
    equally (uniform, as in the released code), or nothing (zero). resamples, confidence, seed: of the
    bootstrap bands of means over prompts.
    """

    module: ClassVar[str] = "repro.analyses.attention_knockout"
    models: ClassVar[tuple[str, ...]] = ("hf", "organism")
    splits_over: ClassVar[str | None] = "prompts"
    kind: Literal["attention_knockout"] = "attention_knockout"
    sets: Annotated[list[Set], Field(min_length=1)] = ["subject", "non_subject", "last"]
    window: Literal["auto"] | PositiveInt = "auto"
    sweep: list[PositiveInt] = []
    maps: list[Natural] = []
    map_window: Literal["auto"] | PositiveInt = "auto"
    nothing_left: Literal["uniform", "zero"] = "uniform"
    resamples: PositiveInt = 1000
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    seed: Natural = 0
    batch: PositiveInt = 16

    @model_validator(mode="after")
    def _once(self) -> Self:
        for name in ("sets", "sweep", "maps"):
            given = getattr(self, name)
            if len(set(given)) < len(given):
                raise ValueError(f"{name}: the same is there twice: {given}")
        return self

    def map_size(self, depth: int) -> int:
        """Layers of a map's windows in a model of `depth` layers."""
        return 2 * (depth // 10) + 2 if self.map_window == "auto" else self.map_window

    def sizes(self, depth: int) -> list[int]:
        """All sizes of windows in a model of `depth` layers, the main one first."""
        main = 2 * (depth // 10) + 1 if self.window == "auto" else self.window
        return [main, *(size for size in self.sweep if size != main)]

    def fingerprint(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"batch"})

    def items(self, of: Of) -> int | None:
        data = of("")["data"]
        return getattr(data, "prompts", None) if getattr(data, "keep", "all") == "all" else None

    def cost(self, subject: Any, data: Any) -> Cost:
        """Two passes a prompt, and for each cell one token from the first layer of its window on."""
        prompts, depth = getattr(data, "prompts", None), subject.layers
        known = prompts is not None
        prompts = prompts if prompts is not None else 1000
        sizes = self.sizes(depth)
        cells = len(self.sets) * depth * len(sizes)
        left = [depth - max(0, centre - size // 2) for size in sizes for centre in range(depth)]
        share, at_once = sum(left) / (depth * len(left)), len(self.sets) * depth * self.batch
        tokens = Work(
            f"{cells} cells a prompt, one token each, from its window's first layer on",
            prompts * cells, 1, unembedded=0, batch=at_once, share=share,
        )  # fmt: skip
        logits = subject.forward_flops(1, 1) - subject.forward_flops(1, 0)
        maps = Work(
            "maps: one token a position and layer", len(self.maps) * TOKENS * depth, 1, batch=TOKENS * depth
        )
        passes = Work("untouched prompts", prompts, TOKENS, forwards=2, batch=self.batch)
        said = f"{prompts:,} prompts" + ("" if known else " assumed, since only the file tells")
        lines = (
            f"{said}, {cells} cells each (sets x layers x window sizes), {TOKENS} tokens a prompt assumed",
        )
        return Cost(
            (passes, tokens, maps) if self.maps else (passes, tokens), prompts * cells * logits, lines
        )


class KnownFacts(Analysis):
    """Make a set of prompts whose answer the model knows, from facts with templates.

    tokens: decoded greedily after the filled template; the attribute must be in them, and no capitalised
    word before it; what stands before it becomes part of the prompt. per_relation: at most so many of one
    relation (null: all). most: at most so many in all, drawn with `seed` (null: all).
    """

    module: ClassVar[str] = "repro.analyses.known_facts"
    models: ClassVar[tuple[str, ...]] = ("hf", "organism")
    kind: Literal["known_facts"] = "known_facts"
    tokens: PositiveInt = 10
    per_relation: PositiveInt | None = 50
    most: PositiveInt | None = 1200
    seed: Natural = 0
    batch: PositiveInt = 16

    def fingerprint(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"batch"})

    def cost(self, subject: Any, data: Any) -> Cost:
        """A pass for each decoded token, over the whole text so far, and one over the prompt."""
        records = getattr(data, "prompts", None)
        if records is None:
            records, line = 20_000, "20,000 records assumed, since only the file tells"
        else:
            line = f"{records:,} records"
        work = Work(
            "greedy decoding without a cache", records, TOKENS + self.tokens // 2, forwards=self.tokens + 1,
            batch=self.batch,
        )  # fmt: skip
        return Cost((work,), lines=(line,))
