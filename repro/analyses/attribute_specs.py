"""What analyses of attributes can be told: extraction, early states, attributes rate, weights as tokens.

Imports no PyTorch. Source of the defaults: Geva et al. 2023, arXiv 2304.14767, and its released code. `batch`
is always the number of prompts in one forward pass: it changes memory and speed, and no number beyond
rounding.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from repro.analyses.base_specs import Analysis, Of
from repro.analyses.flow_specs import TOKENS
from repro.analyses.head_specs import LmHead
from repro.costs import Cost, Work
from repro.data.paragraph_specs import Paragraphs

Natural = Annotated[int, Field(ge=0)]
Reweight = Literal["released", "renormalised"]
Knockout = Literal["released", "zero_subject_last", "zero_all"]
KNOCKOUTS: tuple[Knockout, ...] = ("released", "zero_subject_last", "zero_all")
Position = Literal["subject-last", "subject-first", "following", "last", "first"]
DEPTH = 48  # layers of GPT-2 XL, for which the defaults below were published
POSITIONS: tuple[Position, ...] = ("subject-last", "subject-first", "following", "last", "first")


class _OfPrompts(Analysis):
    models: ClassVar[tuple[str, ...]] = ("hf", "organism")
    splits_over: ClassVar[str | None] = "prompts"
    batch: PositiveInt = 32

    def fingerprint(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"batch"})

    def items(self, of: Of) -> int | None:
        data = of("")["data"]
        # With only the known prompts kept, the model tells how many there are.
        return getattr(data, "prompts", None) if getattr(data, "keep", "all") == "all" else None

    def _cost(self, subject: Any, data: Any, works: Any, projections: float, more: float = 0.0) -> Cost:
        """Two passes a prompt, `works` of (says, passes, share), and vectors read through E a prompt.

        more: further operations a prompt.
        """
        known = getattr(data, "prompts", None)
        prompts = known or 1000
        passes = [("answers", 1.0, 1.0), ("readings", 1.0, 1.0), *works]
        return Cost(
            tuple(
                Work(says, prompts, TOKENS, forwards=count, unembedded=0, batch=self.batch, share=share)
                for says, count, share in passes
            ),
            prompts * (projections * subject.unembedding_flops + more),
            (f"prompts taken as {TOKENS} tokens long; each reads {projections:,.0f} vectors through E",)
            + (() if known else (f"taken as {prompts} prompts: how many there are, the file tells",)),
        )

    def _fitted(self, **fitting: Any) -> tuple[Self, dict[str, str]]:
        """With values that fit the model at hand, where the defaults do not and no others were given."""
        fields = type(self).model_fields
        left = {name: value for name, value in fitting.items() if getattr(self, name) == fields[name].default}
        return self.model_copy(update=left), {name: str(value) for name, value in left.items()}


class AttributeExtraction(_OfPrompts):
    """Where attention and MLP outputs at the last position name the answer, read through E.

    top: how many tokens of each output are kept. reweight: how a pattern without some columns is made whole:
    renormalised as the text says, or by a second softmax as in the released code; compare: both are measured,
    and `reweight` says which is called the result. knockouts: whether any are. subject_prompt: whose subject
    state an answer's rank is taken in, that of the first prompt with this subject (released) or the prompt's
    own. examples: prompts whose top tokens are written out in the notes.
    """

    module: ClassVar[str] = "repro.analyses.attribute_extraction"
    kind: Literal["attribute_extraction"] = "attribute_extraction"
    top: PositiveInt = 10
    reweight: Reweight = "released"
    compare: bool = True
    knockouts: bool = True
    subject_prompt: Literal["first", "own"] = "first"
    examples: Natural = 3

    @property
    def ways(self) -> list[Reweight]:
        """How patterns are made whole, the result's way first."""
        other: Reweight = "renormalised" if self.reweight == "released" else "released"
        return [self.reweight, other] if self.compare else [self.reweight]

    def cost(self, subject: Any, data: Any) -> Cost:
        """Rows of the table are cheap to make and dear to read: one projection each a layer."""
        rows = 12 * len(self.ways) if self.knockouts else 0
        return self._cost(subject, data, (), subject.layers * (3 + rows))


class EarlyPatching(_OfPrompts):
    """Extraction when subject, other, or last positions are put back to the state of an early layer.

    sources: hidden states (0 is the embedding) that positions are put back to, one layer's input at a time.
    """

    module: ClassVar[str] = "repro.analyses.early_patching"
    kind: Literal["early_patching"] = "early_patching"
    sources: Annotated[list[Natural], Field(min_length=1)] = [0, 1, 5, 10, 20]

    def for_subject(self, subject: Any, data: Any) -> tuple[Self, dict[str, str]]:
        """Small models have fewer layers than the published ones: then all of them."""
        if subject.depth > max(self.sources):
            return self, {}
        return self._fitted(sources=list(range(subject.depth)))

    def cost(self, subject: Any, data: Any) -> Cost:
        """Keys of every row for each source, one query, values and outputs of three sets: no whole passes."""
        rows = TOKENS + 3 + 3 + 3  # of d x d products, of which attention has four
        projected = len(self.sources) * rows * 0.5 * subject.layers * subject.attention_weights
        return self._cost(subject, data, (), subject.layers * (1 + 3 * len(self.sources)), projected)


class _Rate(_OfPrompts):
    """How rates are taken.

    paragraphs: what is known about a subject. pool: tokens of highest score that are looked at; top: how many
    are counted after stop words and tokens shorter than min_length are left out.
    """

    paragraphs: Paragraphs = Paragraphs()
    pool: PositiveInt = 500
    top: PositiveInt = 50
    min_length: PositiveInt = 3

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.top > self.pool:
            raise ValueError(f"top: {self.top} tokens cannot be counted of a pool of {self.pool}")
        return self

    def for_subject(self, subject: Any, data: Any) -> tuple[Self, dict[str, str]]:
        """Paragraphs of the small world have four words that count, of 195 in all."""
        return self._fitted(pool=64, top=4) if getattr(data, "world", None) else (self, {})

    def fingerprint(self) -> dict[str, Any]:
        return {**super().fingerprint(), "paragraphs": self.paragraphs.fingerprint()}


class AttributesRate(_Rate):
    """How many of a hidden state's top tokens occur in paragraphs about the subject, by position and layer.

    positions: following is the token after the subject, first the prompt's first token. static: also the mean
    embedding of the subject's tokens. examples: prompts whose top tokens are written out in the notes.
    """

    module: ClassVar[str] = "repro.analyses.attributes_rate"
    kind: Literal["attributes_rate"] = "attributes_rate"
    positions: Annotated[list[Position], Field(min_length=1)] = list(POSITIONS)
    static: bool = True
    examples: Natural = 3

    def cost(self, subject: Any, data: Any) -> Cost:
        """One projection for each position and layer."""
        return self._cost(subject, data, (), subject.layers * len(self.positions) + self.static)


class SublayerKnockout(_Rate):
    """The attributes rate at the last subject position when MLPs or attention of some layers add nothing.

    layer: block after which the state is read. width: how many layers from each start on; inclusive: one
    more, as the released code has it. knockout: released (attention: uniform over what a position may see,
    MLP: hidden units zero so that its bias stays, both everywhere), zero_subject_last (outputs zero at the
    last subject position) or zero_all (everywhere). compare: all of them are measured, and `knockout` says
    which is called the result. early: starts up to this one are early.
    """

    module: ClassVar[str] = "repro.analyses.sublayer_knockout"
    kind: Literal["sublayer_knockout"] = "sublayer_knockout"
    layer: Natural = 40
    width: PositiveInt = 10
    inclusive: bool = True
    knockout: Knockout = "released"
    compare: bool = True
    early: Natural = 10

    @property
    def ways(self) -> list[Knockout]:
        """How sublayers are cancelled, the result's way first."""
        others: list[Knockout] = [way for way in KNOCKOUTS if way != self.knockout]
        return [self.knockout, *others] if self.compare else [self.knockout]

    def for_subject(self, subject: Any, data: Any) -> tuple[Self, dict[str, str]]:
        """Also with layers in proportion, if the model has not as many as were published."""
        rated, named = super().for_subject(subject, data)
        if subject.depth > self.layer:
            return rated, named
        share = subject.depth / DEPTH
        sized = {
            name: max(1, int(value * share)) for name, value in (("layer", 40), ("width", 10), ("early", 10))
        }
        fitted, more = rated._fitted(**sized)
        return fitted, {**named, **more}

    def window(self, start: int) -> list[int]:
        """Blocked layers of one start: all below `layer`."""
        return list(range(start, min(start + self.width + self.inclusive, self.layer)))

    def cost(self, subject: Any, data: Any) -> Cost:
        """Two passes a start and way, from there to the layer; what follows the subject counts, too."""
        share, passes = (self.layer / 2 + 1) / subject.layers, 2 * len(self.ways) * self.layer
        return self._cost(subject, data, (("starts", float(passes), share),), 1 + passes)


class VocabularyWeights(_OfPrompts):
    """Weights read as tokens: what heads promote for the subject's token, and which MLP units write most.

    cuts: ranks below which an answer counts as mapped to by a head; cut: the one that is reported. words:
    tokens whose own rows of W_VO and W_QK are written out, for `heads` (null: all). units: strongest MLP
    units of each prompt of `examples`, at the last subject position, with their `top` tokens.
    """

    module: ClassVar[str] = "repro.analyses.vocabulary_weights"
    kind: Literal["vocabulary_weights"] = "vocabulary_weights"
    cuts: Annotated[list[PositiveInt], Field(min_length=1)] = [1, 10, 25, 50, 100]
    cut: PositiveInt = 10
    words: list[str | Natural] = []
    heads: list[LmHead] | None = None
    units: Natural = 5
    examples: Natural = 5
    top: PositiveInt = 10

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.cut not in self.cuts:
            raise ValueError(f"cut: {self.cut} is none of cuts {self.cuts}")
        return self

    def cost(self, subject: Any, data: Any) -> Cost:
        """Heads of the layers that extract; two such layers a prompt, as published for GPT-2 XL."""
        return self._cost(subject, data, (), subject.layers + 2 * subject.heads)
