"""Indirect-object data of all kinds: prompts and their corrupt twins, made when a tokenizer is known."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from repro.data import ioi_remix
from repro.data.ioi_adversarial import adversarial
from repro.data.ioi_flips import corrupt, flip
from repro.data.ioi_positions import Tokenised, tokenise
from repro.data.ioi_prompts import PromptSet, draw
from repro.data.ioi_templates import Template, choose, family, own
from repro.data.ioi_toy import Toy
from repro.data.ioi_words import PUBLISHED, read_words
from repro.data.text_specs import Ioi, IoiRemix, IoiToy
from repro.data.token_pairs import PromptPairs
from repro.errors import UserError


@dataclass(frozen=True)
class IoiData:
    """Prompts, their corrupt twins, and how to make more of the same.

    toy: the small world, where the prompts are of it; its tokenizer is then the default.
    """

    spec: Ioi | IoiRemix | IoiToy
    prompts: PromptSet
    corrupt: PromptSet
    source: str
    is_published: bool = False
    toy: Toy | None = None

    @property
    def kind(self) -> str:
        """Which kind of data this is, as in the config."""
        return self.spec.kind

    @property
    def sha256(self) -> str:
        """Checksum of the prompts and their twins."""
        return replace(self.prompts, prompts=self.prompts.prompts + self.corrupt.prompts).sha256

    def tokenise(self, prompts: PromptSet, tokenizer: Any = None) -> Tokenised:
        """Any prompts, with the start token and target of this data's settings."""
        if tokenizer is None and self.toy is not None:
            tokenizer = self.toy.tokenizer
        return tokenise(prompts, tokenizer, bos=self.spec.bos, target=self.spec.target)

    def flipped(self, chain: Sequence[str]) -> PromptSet:
        """The prompts after another chain of flips than that of the settings."""
        if isinstance(self.spec, IoiRemix):
            spec = self.spec
            return ioi_remix.corrupted(spec.n, spec.seed, spec.order, chain, spec.continues)[1]
        return corrupt(self.prompts, chain, released=getattr(self.spec, "released", False))

    def pairs(self, tokenizer: Any = None, chain: Sequence[str] | None = None) -> PromptPairs:
        """Prompts and corrupt twins as token ids; `chain`: with other flips than those of the settings."""
        twins = self.corrupt if chain is None else self.flipped(chain)
        return self.paired(self.prompts, twins, tokenizer)

    def paired(self, clean: PromptSet, twins: PromptSet, tokenizer: Any = None) -> PromptPairs:
        """Two prompt sets, row by row, as token ids. Labels, positions and groups are those of `clean`."""
        if len(clean) != len(twins):
            raise UserError(f"prompts and twins must be as many; got {len(clean)} and {len(twins)}")
        here, there = self.tokenise(clean, tokenizer), self.tokenise(twins, tokenizer)
        shared = {name: at for name, at in here.positions.items() if name in there.positions}
        return PromptPairs(
            here.batch, there.batch, here.answer, here.wrong, shared,
            {name: there.positions[name] for name in shared}, here.groups, self.source, self.sha256,
            self.kind, self.is_published, tuple(clean.texts),
        )  # fmt: skip

    def draw(self, n: int, seed: int, templates: Sequence[Template] | None = None) -> PromptSet:
        """`n` new prompts of the same templates and words, from a seed of your own."""
        used = templates or self.templates
        pairs = self.toy.pairs(self.spec.split) if self.toy and isinstance(self.spec, IoiToy) else None
        return draw(used, self.prompts.words, n, seed, pairs=pairs)

    @property
    def templates(self) -> tuple[Template, ...]:
        """The templates that the prompts use, as they stand in them."""
        numbers = {prompt.template: prompt.number for prompt in self.prompts.prompts}
        return tuple(Template(number, text) for text, number in numbers.items())

    def reference(self, per_template: int = 50, seed: int = 1) -> PromptSet:
        """ABC prompts for mean ablation: `per_template` of each template of the prompts, in their order.

        Means are taken by template and position, so every template needs its own (50 or more).
        """
        made = [
            prompt
            for i, template in enumerate(self.templates)
            for prompt in self.draw(per_template, seed * 1000 + i, [template]).prompts
        ]
        return flip(PromptSet(tuple(made), self.prompts.words, seed), "ABC")


def load(spec: Ioi | IoiRemix | IoiToy) -> IoiData:
    """Prompts and their corrupt twins, from the spec's own seeds; no tokenizer is needed yet.

    Raises `UserError` for word lists, templates and flips that do not fit together.
    """
    if isinstance(spec, IoiRemix):
        clean, twins = ioi_remix.corrupted(spec.n, spec.seed, spec.order, spec.corruption, spec.continues)
        source = f"REMIX notebook stream: template 1 {spec.order}, {spec.n} prompts, seed {spec.seed}"
        return IoiData(spec, clean, twins, f"{source}, flips {'+'.join(spec.corruption)}", True)
    if isinstance(spec, IoiToy):
        toy = Toy(spec.held_out_share, spec.split_seed)
        clean = toy.prompts(spec.n, spec.seed, spec.split, spec.order)
        source = f"small world of 111 words, {spec.split} pairs of names"
        return _finished(IoiData(spec, clean, clean, source, False, toy))
    words = read_words(spec.words) if spec.words else PUBLISHED
    templates = own(words.templates) if words.templates else family(spec.family)
    chosen = choose(templates, spec.order, spec.templates, random.Random(f"templates/{spec.seed}"))
    clean = draw(chosen, words, spec.n, spec.seed, symmetric=spec.symmetric)
    source = f"own words {spec.words}" if spec.words else "published names, places and objects"
    source += f", {len(chosen)} {'own' if words.templates else spec.family} templates ({spec.order})"
    return _finished(IoiData(spec, clean, clean, source, not spec.words and spec.family == "standard"))


def _finished(data: IoiData) -> IoiData:
    """With the sentences of adversarial prompts, the twins, and a source that says how they were made."""
    spec, clean = data.spec, data.prompts
    assert not isinstance(spec, IoiRemix)
    if spec.adversarial:
        clean = adversarial(clean, spec.adversarial)
    data = replace(data, prompts=clean)
    random_names = "independent" if getattr(spec, "released", False) else "distinct"
    flips = f"flips {'+'.join(spec.corruption) or 'none'} ({random_names} random names)"
    source = f"{data.source}, {spec.n} prompts, seed {spec.seed}, {flips}"
    return replace(data, corrupt=data.flipped(spec.corruption), source=source)
