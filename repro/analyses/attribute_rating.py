"""Attributes rates of vectors: how many of their top tokens occur in paragraphs about the prompt's subject.

Source: Geva et al. 2023, arXiv 2304.14767, section on subject enrichment, as in the released notebook.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from repro.analyses.attribute_specs import AttributesRate, SublayerKnockout
from repro.data import paragraphs
from repro.data.context_words import Words, rates
from repro.data.facts import FactData
from repro.data.facts_records import Fact
from repro.data.facts_tokens import FactBatch, tokenise
from repro.errors import UserError
from repro.interventions.vocabulary_projection import Vocabulary
from repro.models.language_model import LanguageModel

NONE = -1.0  # the rate of a prompt whose subject has no paragraphs


class Rater:
    """Rates of vectors for the subjects of some data. Everything is decoded once.

    words: the vocabulary; says: for the notes. Raises `UserError` where paragraphs cannot be had.
    """

    def __init__(self, model: LanguageModel, data: FactData, spec: AttributesRate | SublayerKnockout) -> None:
        self._tokenizer, self._spec = model.tokenizer, spec
        # Of all subjects, in every part, so that what was retrieved is found again by all of them.
        names = [name for fact in data.facts for name in self.names(fact)]
        self._paragraphs = paragraphs.find(spec.paragraphs, names, data.world, model.tokenizer is not None)
        self.vocabulary = Vocabulary(model)
        self.words = Words(model.tokenizer, len(self.vocabulary), spec.min_length)
        self._contexts: dict[paragraphs.Subject, Tensor] = {}

    @property
    def says(self) -> dict[str, str]:
        """Where paragraphs are from, and what vectors are read through."""
        said = {"paragraphs": self._paragraphs.says, "projection": f"{self.vocabulary.says}; no final norm"}
        if self._tokenizer is None:
            said["words"] = "token ids, for want of a tokenizer; stop words and short ones are not left out"
        return said

    def names(self, fact: Fact) -> list[paragraphs.Subject]:
        """How the paragraphs of a fact's subject may be named: as token ids, or as text."""
        if fact.subject is not None:
            return [fact.subject]
        assert fact.tokens is not None and fact.span is not None
        ids = fact.tokens[slice(*fact.span)]
        return [ids] if self._tokenizer is None else [ids, self._tokenizer.decode(list(ids)).strip()]

    def context(self, fact: Fact) -> Tensor | None:
        """Strings that count in the paragraphs about a fact's subject; None if there are none."""
        texts = self._paragraphs.texts
        name = next((name for name in self.names(fact) if name in texts), None)
        if name is None:
            return None
        if name not in self._contexts:
            self._contexts[name] = self.words.context(texts[name])
        return self._contexts[name] if len(self._contexts[name]) else None

    def sizes(self, facts: FactBatch) -> Tensor:
        """Strings in each prompt's context, [B]; -1 without paragraphs or words in them that count."""
        found = [self.context(fact) for fact in facts.facts]
        return torch.tensor([-1 if context is None else len(context) for context in found])

    def rate(self, vectors: Tensor, facts: FactBatch, embedded: bool = False) -> Tensor:
        """Attributes rates [B, ...] in percent of vectors [B, ..., d]; NONE without paragraphs.

        embedded: the vectors are means of embeddings (see `Vocabulary.scores`).
        """
        found = [self.context(fact) for fact in facts.facts]
        member = torch.zeros(len(facts), self.words.strings, dtype=torch.bool)
        for row, context in enumerate(found):
            if context is not None:
                member[row, context] = True
        inner = vectors.shape[1:-1]
        flat, own = vectors.reshape(-1, vectors.shape[-1]), torch.arange(len(facts))
        owner = own.repeat_interleave(len(flat) // max(1, len(facts)))
        parts = [
            rates(self.words, ids, member[owner[rows]], self._spec.top)
            for rows, ids in self._pools(flat, embedded)
        ]
        rate = torch.cat(parts).view(len(facts), *inner)
        rate[[row for row, context in enumerate(found) if context is None]] = NONE
        return rate

    def top_words(self, vectors: Tensor, count: int) -> list[list[str]]:
        """The first `count` tokens that count of each vector [N, d], as texts."""
        found = []
        for _, ids in self._pools(vectors, False):
            kept = [[i for i in row if self.words.counted[i]][:count] for row in ids.tolist()]
            found += [[self.words.texts[i] for i in row] for row in kept]
        return found

    def _pools(self, vectors: Tensor, embedded: bool) -> Any:
        pool = min(self._spec.pool, len(self.vocabulary))
        for rows, scores in self.vocabulary.scores(vectors, embedded):
            yield rows, scores.topk(pool, dim=-1).indices.cpu()

    def static(self, facts: FactBatch) -> Tensor:
        """Rates [B] of the mean embedding of each subject's tokens, as they are behind a blank."""
        means = [
            self.vocabulary.tokens[torch.tensor(self._static_ids(facts, row))].mean(0)
            for row in range(len(facts))
        ]
        return self.rate(torch.stack(means), facts, embedded=True)

    def _static_ids(self, facts: FactBatch, row: int) -> list[int]:
        """The subject's tokens; at the start of a text as if a blank came before."""
        fact = facts.facts[row]
        tokens, mask = facts.batch.tokens[row], facts.batch.mask[row]
        if bool(facts.subject_first[row]) and fact.prompt is not None and fact.tokens is None:
            moved = replace(fact, prompt=f" {fact.prompt}")
            again = tokenise([moved], self._tokenizer, False, "offsets")
            start = self._tokenizer.convert_ids_to_tokens([int(again.batch.tokens[0, 0])])[0]
            if start.startswith("Ġ"):  # how byte-level tokenizers write a blank
                facts, row, tokens, mask = again, 0, again.batch.tokens[0], again.batch.mask[0]
        return tokens[mask][int(facts.first[row]) : int(facts.last[row]) + 1].tolist()


def require_paragraphs(sizes: Any) -> None:
    """Refuse a result in which no prompt's subject has paragraphs."""
    if not (sizes >= 0).any():
        raise UserError(
            "analysis.paragraphs: none of the subjects has paragraphs with words that count, so there is no"
            " rate. Are they about these subjects? Subjects are looked up letter by letter or token by token,"
            " or retrieved by their words"
        )
