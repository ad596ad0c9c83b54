"""What analyses of factual recall share: prompts as tokens, and the answer that the model itself gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repro.data.facts import FactData
from repro.data.facts_tokens import FactBatch
from repro.errors import UserError
from repro.interventions.attention_knockout import probability
from repro.interventions.lm_run import run
from repro.models.language_model import LanguageModel
from repro.results import NamedArray
from repro.shards import WHOLE, Part


@dataclass(frozen=True)
class Asked:
    """Prompts, and what the model says to them, row by row.

    answer: its likeliest next token, which is "the attribute" in every measurement. base: the probability of
    that. agrees: 1 where it is a beginning of the attribute in the data, 0 where not, -1 where none is given.
    asked: prompts before those that are not known were left out (data.keep=known).
    """

    facts: FactBatch
    answer: Int[Tensor, " row"]
    base: Float[Tensor, " row"]
    agrees: Int[Tensor, " row"]
    asked: int

    def __len__(self) -> int:
        return len(self.facts)

    def rows(self, index: Tensor) -> Asked:
        """The chosen prompts, without columns that are padding in all of them."""
        facts = self.facts.rows(index).narrow()
        return Asked(facts, self.answer[index], self.base[index], self.agrees[index], self.asked)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Asked]]:
        """Batches of prompts of about the same length, with their places; the order is that of length."""
        order = torch.argsort(self.facts.end, stable=True)
        for index in order.split(size):
            if len(index):
                yield index, self.rows(index)


def facts_of(model: LanguageModel, data: Any) -> FactBatch:
    """The data's prompts as token ids of this model. Raises `UserError` for data without subjects."""
    if not isinstance(data, FactData):
        raise UserError(
            "data: it needs prompts about subjects. Valid choices: data=known_1000, data=prompts_file,"
            " data=facts_toy"
        )
    facts = data.tokenise(model.tokenizer)
    facts.check_vocabulary(model.vocabulary)
    return facts


def ask(model: LanguageModel, data: Any, part: Part = WHOLE, batch: int = 16) -> Asked:
    """The prompts of a part of the data, and the model's answers, from one pass a batch."""
    facts = facts_of(model, data)
    facts = facts.rows(part.of(range(len(facts)))).narrow()
    answer, base = torch.zeros(len(facts), dtype=torch.long), torch.zeros(len(facts), dtype=torch.float64)
    for index in torch.argsort(facts.end, stable=True).split(batch):
        logits = run(model, facts.rows(index).narrow().batch, logits="last").logits
        assert logits is not None
        answer[index] = logits.argmax(-1).cpu()
        base[index] = probability(logits, answer[index]).cpu()
    said = facts.agrees(answer, model.tokenizer)
    agrees = torch.tensor([-1 if one is None else int(one) for one in said])
    whole = Asked(facts, answer, base, agrees, len(facts))
    if data.spec.keep == "all":
        return whole
    if bool((agrees < 0).any()):
        raise UserError(
            "data.keep: known prompts can be told only where every record has an attribute, and the model a"
            " tokenizer. Give data.keep=all"
        )
    kept = (agrees == 1).nonzero().flatten()
    return Asked(facts.rows(kept), answer[kept], base[kept], agrees[kept], len(facts))


def common_arrays(asked: Asked) -> dict[str, NamedArray]:
    """What every analysis of facts saves of its prompts, by prompt; `asked` is the term of a sum.

    number: place in the data. answer: token. base: probability of the answer. agrees: see `Asked`.
    subject_columns: first and last token of the subject, and the last token of the prompt.
    """
    facts, prompts = asked.facts, dict[str, Any](prompt=len(asked))
    columns = torch.stack([facts.first, facts.last, facts.end], dim=1).numpy()
    return {
        "number": NamedArray(facts.number.numpy(), prompts),
        "answer": NamedArray(asked.answer.numpy(), prompts),
        "base": NamedArray(asked.base.numpy(), prompts),
        "agrees": NamedArray(asked.agrees.numpy(), prompts),
        "subject_first": NamedArray(facts.subject_first.numpy(), prompts),
        "subject_columns": NamedArray(columns, {**prompts, "column": ["first", "last", "end"]}),
        "asked": NamedArray(np.array([asked.asked]), {"total": 1}),
    }


def common_scalars(arrays: dict[str, NamedArray]) -> dict[str, float]:
    """prompts; asked (before unknown ones were left out); base.mean; mismatches: prompts whose answer is not
    the data's attribute, and agreeing.share of those with an attribute (NaN if there is none).

    Raises `UserError` if no prompt is left.
    """
    agrees, base = arrays["agrees"].values, arrays["base"].values
    if not len(base):
        raise UserError(
            f"data.keep: of {int(arrays['asked'].values.sum())} prompts the model knows none. Give"
            " data.keep=all, or prompts that it was seen to know (analysis=known_facts)"
        )
    named = agrees >= 0
    return {
        "prompts": float(len(base)),
        "asked": float(arrays["asked"].values.sum()),
        "base.mean": float(base.mean()),
        "mismatches": float((agrees == 0).sum()),
        "agreeing.share": float(agrees[named].mean()) if named.any() else float("nan"),
    }
