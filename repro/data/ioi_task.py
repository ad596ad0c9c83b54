"""Indirect-object sentences of a small world as something to train a model on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from repro.data.ioi_prompts import Prompt
from repro.data.ioi_toy import START, WORLD, Toy
from repro.data.lm_task_specs import IoiTask
from repro.data.lm_tasks import Scored, generator, padded


class IoiSentences:
    """See `IoiTask`. Every word after the start token is predicted; pairs that are held out never occur."""

    def __init__(self, spec: IoiTask) -> None:
        self._spec = spec
        self.world = Toy(spec.held_out_share, spec.split_seed)
        self.vocabulary = self.world.tokenizer.words
        self.start: str | None = START
        self.filler = self.world.tokenizer.pad_token_id

    def batch(self, seed: int, step: int, size: int) -> Scored:
        """`size` whole sentences: start token, prompt, indirect object."""
        place = int(generator("ioi train", seed, step).integers(2**62))
        tokens, real = self.world.training_sentences(place, size)
        real[:, 0] = False
        return Scored(tokens, real)

    def probes(self) -> dict[str, Scored]:
        """The last name of sentences over pairs that are held out, its rival being the subject.

        abc: half of the sentences with a third name as the one that gives, so that neither name is due, and
        the same with the first two names exchanged: what a model thinks of single names then cancels, which
        otherwise moves the mean logit difference of 400 sentences by 0.1.
        """
        rng, count = generator("ioi probes"), self._spec.probe_sentences
        prompts = self.world.prompts(count, int(rng.integers(2**62))).prompts
        third = [self._third(prompt, rng) for prompt in prompts[: (count + 1) // 2]]
        both = [one for each in third for one in (each, replace(each, io=each.s1, s1=each.io))]
        return {"held_out": self._scored(list(prompts)), "abc": self._scored(both)}

    def _third(self, prompt: Prompt, rng: np.random.Generator) -> Prompt:
        others = [name for name in WORLD.names if name not in (prompt.io, prompt.s1)]
        return replace(prompt, s2=others[int(rng.integers(len(others)))])

    def _scored(self, prompts: list[Prompt]) -> Scored:
        """Only the name at the end is scored."""
        encode, ids = self.world.tokenizer.encode, self.world.tokenizer.get_vocab()
        rows = [[*encode(prompt.text, add_special_tokens=True), ids[prompt.io]] for prompt in prompts]
        tokens, last = padded(rows, self.filler), np.array([len(row) - 1 for row in rows])
        scored = np.arange(tokens.shape[1])[None] == last[:, None]
        rivals = np.where(scored, np.array([ids[prompt.s1] for prompt in prompts])[:, None], 0)
        return Scored(tokens, scored, rivals)


def build(spec: IoiTask) -> IoiSentences:
    """The task of indirect-object sentences."""
    return IoiSentences(spec)
