"""Flips: the same prompts with one thing changed. Positions are found anew, whatever a flip moves.

| flip | text | labels (answer, wrong) |
|---|---|---|
| IO, S | every mention becomes another name | the new name is right, wrong |
| S1, S2 | the first, the last mention of the subject becomes another name | unchanged |
| S2:IO | the last subject becomes the indirect object's name | exchange |
| order | the two names of the first clause change places, slots with them (BABA <-> ABBA) | unchanged |
| exchange | the same, but the slots stay: slot IO then holds the subject | unchanged |
| IO:animal, S:animal | the name becomes an animal | follow |
| S+1 | "and" after S1 becomes a longer phrase; without one, an aside is inserted there | unchanged |
| middle | words are inserted before the punctuation that ends the first clause | unchanged |
| prefix | another beginning before the first name, which moves all that follows | unchanged |
| punctuation | the punctuation that ends the first clause goes | unchanged |
| final | the name written as target is the wrong one | unchanged |
| ABC | three names, distinct from each other and from the prompt's own, in the slots IO, S1, S2 | follow |

Random names differ from all names of their prompt. `released=True` draws as the published code does: a new
IO differs from the old labels, a new S or S1 is any name (so it may be the old one, or the indirect
object), and ABC is its three independent flips IO, S, S1 in turn, about 3% of which repeat a name.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from repro.data.ioi_prompts import Prompt, PromptSet
from repro.data.ioi_templates import exchanged
from repro.data.ioi_words import Words
from repro.data.text_specs import FLIPS
from repro.errors import UserError


def corrupt(prompts: PromptSet, chain: Sequence[str], *, released: bool = False) -> PromptSet:
    """The prompts after all flips of the chain, one after another."""
    for flip_name in chain:
        prompts = flip(prompts, flip_name, released=released)
    return prompts


def flip(prompts: PromptSet, name: str, *, seed: int | None = None, released: bool = False) -> PromptSet:
    """The prompts with one flip made, see the table above. Slots, labels and texts follow.

    The random stream is named after the seed (default: that of the prompts), the flips made so far and
    this one. Raises `UserError` for an unknown flip.
    """
    if name not in FLIPS:
        raise UserError(f"flip: got {name!r}. Valid choices: {', '.join(FLIPS)}")
    if name == "ABC" and released:
        return corrupt(prompts, ["IO", "S", "S1"], released=True)
    stream = "/".join(["flip", str(prompts.seed if seed is None else seed), *prompts.history, name])
    rng = random.Random(stream)
    return prompts.made(
        [_flipped(prompt, name, prompts.words, rng, released) for prompt in prompts.prompts], name
    )


def replace_io(prompt: Prompt, name: str) -> Prompt:
    """The prompt with another indirect object, which is right now."""
    return replace(prompt, io=name, answer=name, final=name)


def replace_s(prompt: Prompt, name: str) -> Prompt:
    """The prompt with another subject in both its places, which is wrong now."""
    return replace(prompt, s1=name, s2=name, wrong=name)


def _flipped(prompt: Prompt, name: str, words: Words, rng: random.Random, released: bool) -> Prompt:
    if name in ("IO", "S", "S1", "S2", "ABC"):
        return _renamed(prompt, name, words, rng, released)
    if name == "IO:animal":
        return replace_io(prompt, rng.choice(words.animals))
    if name == "S:animal":
        return replace_s(prompt, rng.choice([animal for animal in words.animals if animal != prompt.io]))
    if name == "S2:IO":
        return replace(prompt, s2=prompt.io, answer=prompt.wrong, wrong=prompt.answer, final=prompt.wrong)
    if name == "exchange":
        return replace(prompt, io=prompt.s1, s1=prompt.io)
    if name == "final":
        return replace(prompt, final=prompt.wrong)
    return replace(prompt, template=_TEXT_FLIPS[name](prompt.template, words, rng))


def _renamed(prompt: Prompt, name: str, words: Words, rng: random.Random, released: bool) -> Prompt:
    """A flip that puts random names in."""
    taken = {prompt.io, prompt.s1, prompt.s2, prompt.c, prompt.answer, prompt.wrong}
    if name == "ABC":
        io, s1, s2 = rng.sample([word for word in words.names if word not in taken], 3)
        return replace(replace_io(prompt, io), s1=s1, s2=s2, wrong=s2)
    if released:
        taken = {"S": set(), "S1": set()}.get(name, {prompt.answer, prompt.wrong})
    new = rng.choice([word for word in words.names if word not in taken])
    if name == "IO":
        return replace_io(prompt, new)
    return replace_s(prompt, new) if name == "S" else replace(prompt, **{name.lower(): new})


def _first_name(template: str) -> int:
    return min(template.index("[S1]"), template.index("[IO]"))


def _join(template: str) -> int:
    """Where the punctuation between the first clause and the last subject stands."""
    start, stop = max(template.index("[S1]"), template.index("[IO]")), template.index("[S2]")
    return max(template.rfind(mark, start, stop) for mark in ".,")


def _prefixed(template: str, words: Words, rng: random.Random) -> str:
    at = _first_name(template)
    prefix = words.place_prefix if "[PLACE]" in template[:at] else rng.choice(words.prefixes)
    return f"{prefix.rstrip()} {template[at:]}"


def _longer_after_s1(template: str, words: Words, rng: random.Random) -> str:
    before, after = template.split("[S1]", 1)
    if after.startswith(" and "):
        return f"{before}[S1] {rng.choice(words.phrases)} {after.removeprefix(' and ')}"
    return f"{before}[S1]{_joined(rng.choice(words.asides))}{after}"


def _longer_middle(template: str, words: Words, rng: random.Random) -> str:
    at, middle = _join(template), rng.choice(words.middles)
    return template[:at] + _joined(middle) + template[at:] if at >= 0 else template


def _unpunctuated(template: str, words: Words, rng: random.Random) -> str:
    at = _join(template)
    return template[:at] + template[at + 1 :] if at >= 0 else template


def _joined(text: str) -> str:
    return text if text[:1] in ",.;" else f" {text}"


_TEXT_FLIPS: dict[str, Callable[[str, Words, random.Random], str]] = {
    "order": lambda template, words, rng: exchanged(template),
    "S+1": _longer_after_s1,
    "middle": _longer_middle,
    "prefix": _prefixed,
    "punctuation": _unpunctuated,
}
