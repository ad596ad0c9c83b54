"""What each measurement on a language model can be told, one class a question. Imports no PyTorch.

Heads are written "layer.head" ("9.9"), both from 0. `batch` is always the number of rows in one forward
pass: it changes memory and speed, and no number beyond rounding.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from repro.analyses.circuit_specs import LmAnalysis
from repro.analyses.head_specs import LmHead, Name, Natural, Node
from repro.analyses.prompt_costs import one_pass, patching_cost
from repro.costs import Cost
from repro.specs import Spec

UNTOUCHED = "untouched"
Which = Literal["clean", "corrupt"]
Norm = Literal["frozen", "folded", "ignored"]
STREAM = ("resid_pre", "resid_post", "attn_out", "mlp_out")
HEADS = ("z", "q", "k", "v", "pattern")


class _OnePass(LmAnalysis):
    """What is read from one run over the prompts."""

    batch: PositiveInt = 64

    def cost(self, subject: Any, data: Any) -> Cost:
        """Every prompt once."""
        return one_pass(data, self.batch)


class LogitDifference(_OnePass):
    """How well the answer is told from the wrong token, and where heads look from the last token.

    which: the clean or the corrupt prompts. queries, keys: positions between which attention is measured;
    keys null: those of IO, S1, S2 that the data has; [] measures no attention. heads: their mean attention
    to each key becomes a scalar.
    """

    module: ClassVar[str] = "repro.analyses.logit_difference"
    kind: Literal["logit_difference"] = "logit_difference"
    which: Which = "clean"
    query: str = "END"
    keys: list[str] | None = None
    heads: list[LmHead] = []
    batch: PositiveInt = 64


class ActivationPatching(LmAnalysis):
    """Put activations of the other prompts into a run, one place at a time, and recompute all that follows.

    direction: noising puts corrupt activations into the clean run, denoising clean ones into the corrupt
    run. sites: what is patched in turn. positions: all of them together, each column on its own, or the
    named ones on their own; for `pattern` these are queries. layers: null is all.
    """

    module: ClassVar[str] = "repro.analyses.activation_patching"
    kind: Literal["activation_patching"] = "activation_patching"
    direction: Literal["noising", "denoising"] = "noising"
    sites: list[Literal["z", "q", "k", "v", "pattern", "resid_pre", "resid_post", "attn_out", "mlp_out"]] = (
        Field(["z", "attn_out", "mlp_out"], min_length=1)
    )
    positions: Literal["together", "columns"] | list[str] = "together"
    layers: list[Natural] | None = None
    batch: PositiveInt = 64

    def cost(self, subject: Any, data: Any) -> Cost:
        """Each layer, head and place in turn, from its layer on."""
        return patching_cost(subject, data, self, HEADS)


class LogitAttribution(_OnePass):
    """What each part writes along answer minus wrong at END, directly.

    norm: what stands for the final norm. frozen: its scale as it was in the run, so that all parts sum to
    the logit difference; folded: its gain and centring without the scale; ignored: the bare unembedding.
    """

    module: ClassVar[str] = "repro.analyses.logit_attribution"
    kind: Literal["logit_attribution"] = "logit_attribution"
    which: Which = "clean"
    norm: Norm = "frozen"
    batch: PositiveInt = 64


class AttentionWriting(_OnePass):
    """Attention of heads to a name against what they write along that name, prompt by prompt.

    names: label -> positions whose attention is summed; the name is the token at the first of them.
    heads: null is all.
    """

    module: ClassVar[str] = "repro.analyses.attention_writing"
    kind: Literal["attention_writing"] = "attention_writing"
    heads: list[LmHead] | None = None
    names: dict[str, Annotated[list[str], Field(min_length=1)]] = Field(
        {"IO": ["IO"], "S": ["S1", "S2"]}, min_length=1
    )
    query: str = "END"
    which: Which = "clean"
    norm: Norm = "ignored"
    batch: PositiveInt = 64


class KnockoutSet(Spec):
    """Nodes that are knocked out; outside: everything but these heads is, while MLPs stay as they are."""

    nodes: list[Node]
    outside: bool = False


def _set(given: Any) -> Any:
    return {"nodes": given} if isinstance(given, list) else given


class Knockouts(LmAnalysis):
    """Replace heads and MLPs by their mean over reference prompts of the same template, or by zero.

    value: mean (by template and position) or zero. per_template: reference prompts drawn for each template,
    all three names different; null, or data that cannot draw, takes the corrupt prompts of the data.
    singles: every head and MLP on its own. positions: where, in these (all, or named ones together).
    sets: name -> nodes knocked out at once ("9.9@END", "mlp0", "3.*"), or {nodes: ..., outside: true}.
    direct_after: sets after which the direct effect of every head on the logits is measured again (path
    patching from the corrupt prompts at END); mlps: whether MLPs carry it on (recompute) or not (freeze).
    """

    module: ClassVar[str] = "repro.analyses.knockouts"
    kind: Literal["knockouts"] = "knockouts"
    value: Literal["mean", "zero"] = "mean"
    per_template: PositiveInt | None = 50
    reference_seed: Natural = 1
    singles: bool = True
    positions: Literal["all"] | list[str] = "all"
    sets: dict[Name, Annotated[KnockoutSet, BeforeValidator(_set)]] = {}
    direct_after: list[str] = []
    mlps: Literal["recompute", "freeze"] = "recompute"
    batch: PositiveInt = 64

    @model_validator(mode="after")
    def _names_are_free(self) -> Self:
        for name in (UNTOUCHED, "logit_difference"):
            if name in self.sets:
                raise ValueError(f"a set cannot be called {name!r}, since the result has that already")
        return self


class AttentionPatterns(_OnePass):
    """Attention between named positions, plain and times the norm of the value at the key; whole patterns.

    heads: null is all. panels: prompts (from 0) whose whole patterns are kept, with their tokens.
    """

    module: ClassVar[str] = "repro.analyses.attention_patterns"
    kind: Literal["attention_patterns"] = "attention_patterns"
    which: Which = "clean"
    heads: list[LmHead] | None = None
    queries: list[str] = Field(["END"], min_length=1)
    keys: list[str] | None = None
    panels: list[Natural] = []
    batch: PositiveInt = 64


class CopyScores(LmAnalysis):
    """Share of names that a head's OV circuit puts among the `top` tokens, or the negative of it does.

    positions: of the names; null: those of IO, S1, S2 that the data has. heads: null is all.
    """

    module: ClassVar[str] = "repro.analyses.copy_scores"
    kind: Literal["copy_scores"] = "copy_scores"
    heads: list[LmHead] | None = None
    positions: list[str] | None = None
    top: PositiveInt = 5
    batch: PositiveInt = 64


class RandomTokenScores(LmAnalysis):
    """Previous-token, duplicate-token, induction and copying scores of heads on repeated random tokens.

    norm: how what a head writes is read along the next token (see logit_attribution).
    """

    module: ClassVar[str] = "repro.analyses.random_token_scores"
    kind: Literal["random_token_scores"] = "random_token_scores"
    norm: Norm = "ignored"
    batch: PositiveInt = 4
