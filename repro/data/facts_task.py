"""Facts of the small world as something to train a model on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from repro.data.facts_records import Fact
from repro.data.facts_toy import START, FactWorld
from repro.data.lm_task_specs import FactsTask
from repro.data.lm_tasks import Scored, generator, padded


class FactSentences:
    """See `FactsTask`. Only the attribute, the last token, is predicted."""

    def __init__(self, spec: FactsTask) -> None:
        self._most = spec.probe_sentences
        self.world = FactWorld(spec.subjects, spec.world_seed, spec.withheld_share)
        self.vocabulary = self.world.tokenizer.words
        self.start: str | None = START
        self.filler = self.world.tokenizer.pad_token_id

    def batch(self, seed: int, step: int, size: int) -> Scored:
        """`size` different sentences of those that are trained (with repeats if there are fewer)."""
        tokens, scored = self._trained.tokens, self._trained.scored
        rng = generator("facts train", seed, step)
        rows = rng.choice(len(tokens), size, replace=size > len(tokens))
        return Scored(tokens[rows], scored[rows])

    def probes(self) -> dict[str, Scored]:
        """recall: trained sentences. withheld: facts in the template in which they were never trained."""
        return {name: self._probe(which) for name, which in (("recall", "trained"), ("withheld", "withheld"))}

    def _probe(self, templates: str) -> Scored:
        every = self.world.prompts(templates)
        rows = generator("facts probes", len(every)).permutation(len(every))[: self._most]
        return self._scored([every[i] for i in sorted(rows.tolist())])

    @cached_property
    def _trained(self) -> Scored:
        return self._scored(self.world.prompts("trained"))

    def _scored(self, facts: Sequence[Fact]) -> Scored:
        encode = self.world.tokenizer.encode
        rows = [encode(f"{fact.prompt} {fact.attribute}", add_special_tokens=True) for fact in facts]
        tokens, last = padded(rows, self.filler), np.array([len(row) - 1 for row in rows])
        return Scored(tokens, np.arange(tokens.shape[1])[None] == last[:, None])


def build(spec: FactsTask) -> FactSentences:
    """The task of facts."""
    return FactSentences(spec)
