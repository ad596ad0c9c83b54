"""Prompts drawn anew under a condition: what a causal-scrubbing sampler puts in a prompt's place.

Drawing instead of filtering always finds a prompt that meets the condition, however rare.
"""

from __future__ import annotations

import random
from dataclasses import replace

from repro.data.ioi_prompts import Prompt, PromptSet
from repro.data.ioi_templates import exchanged
from repro.data.ioi_words import Words
from repro.errors import UserError

# What stays: the name in the first, second or third place, in the slot IO, that and the order, or all names.
CONDITIONS = ("first", "second", "third", "IO", "IO+order", "names", "any")


def like(prompts: PromptSet, condition: str, seed: int, change_family: bool = False) -> PromptSet:
    """For each prompt a new one that agrees with it in `condition`; all else is uniform.

    Templates keep their number; the order of names is drawn among those that the set has of it, but for
    `IO+order` and `names` (where only place and object vary). change_family: the new prompt is IOI or ABC
    with equal chance, instead of what its prompt is. Raises `UserError` for an unknown condition.
    """
    if condition not in CONDITIONS:
        raise UserError(f"condition: got {condition!r}. Valid choices: {', '.join(CONDITIONS)}")
    rng = random.Random(f"like/{seed}/{condition}")
    present = set(prompts.groups)
    made = [_one(prompt, condition, present, prompts.words, rng, change_family) for prompt in prompts.prompts]
    return prompts.made(made, f"like {condition}")


def _one(
    prompt: Prompt, condition: str, present: set[str], words: Words, rng: random.Random, change_family: bool
) -> Prompt:
    new = replace(prompt, place=rng.choice(words.places), object=rng.choice(words.objects))
    if condition == "names":
        return new
    other = exchanged(prompt.template)
    if condition != "IO+order" and other in present and rng.random() < 0.5:
        new = replace(new, template=other)
    abc = rng.random() < 0.5 if change_family else prompt.is_abc
    kept = _kept(prompt, new.order, condition)
    if not abc and ("s1" in kept or "s2" in kept):
        subject = kept.get("s1") or kept["s2"]
        kept |= {"s1": subject, "s2": subject}
    free = [name for name in words.names if name not in {*kept.values(), prompt.c}]
    drawn = dict(zip(("io", "s1", "s2"), rng.sample(free, 3), strict=True))
    if not abc:
        drawn["s2"] = drawn["s1"]
    names = {**drawn, **kept}
    return replace(new, **names, answer=names["io"], wrong=names["s2"], final=names["io"])


def _kept(prompt: Prompt, order: str, condition: str) -> dict[str, str]:
    """Which slot of a prompt in `order` holds which name of the old prompt."""
    first, second = ("s1", "io") if order == "BABA" else ("io", "s1")
    return {
        "first": {first: prompt.first},
        "second": {second: prompt.second},
        "third": {"s2": prompt.s2},
        "IO": {"io": prompt.io},
        "IO+order": {"io": prompt.io},
        "any": {},
    }[condition]
