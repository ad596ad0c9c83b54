"""Adversarial prompts: the indirect object, or as a control the subject, is mentioned once more or twice.

Two sentences of a list follow the first clause, both about the same name (source: Wang et al. 2022,
arXiv 2211.00593, section on adversarial examples). They move S2 and END by their length.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

from repro.data.ioi_prompts import PromptSet
from repro.errors import UserError

SLOTS = {"IO": "[IO]", "S": "[S1]"}


def adversarial(prompts: PromptSet, about: str, seed: int | None = None) -> PromptSet:
    """The prompts with two sentences about `about` (IO: the attack, S: the control) after the first clause.

    All ordered pairs of the word list's sentences, a sentence twice too, are equally likely. They stand
    behind the punctuation that ends the first clause, whatever it is, and before a joining word.
    """
    if about not in SLOTS:
        raise UserError(f"data.adversarial: got {about!r}. Valid choices: {', '.join(SLOTS)}")
    sentences = [sentence.replace("X", SLOTS[about], 1) for sentence in prompts.words.sentences]
    every = list(itertools.product(sentences, repeat=2))
    stream = "/".join(["adversarial", str(prompts.seed if seed is None else seed), *prompts.history])
    rng = random.Random(stream)
    made = []
    for prompt in prompts.prompts:
        text = prompt.template
        start, stop = max(text.index("[S1]"), text.index("[IO]")), text.index("[S2]")
        at = max(text.rfind(mark, start, stop) for mark in ".,")
        if at < 0:
            raise UserError(f"data.adversarial: the first clause needs a full stop or comma; got {text!r}")
        first, second = rng.choice(every)
        made.append(replace(prompt, template=f"{text[: at + 1]} {first} {second}{text[at + 1 :]}"))
    return prompts.made(made, f"adversarial {about}")
