"""Columns of names under tokenizers of several kinds: what stands there decodes to the named word (D3)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from repro.data import ioi
from repro.data.ioi_adversarial import adversarial
from repro.data.ioi_flips import corrupt, flip
from repro.data.ioi_positions import Tokenised, single_tokens, start_token, tokenise
from repro.data.ioi_prompts import PromptSet, draw, fill
from repro.data.ioi_templates import family, own
from repro.data.ioi_words import NAMES, PUBLISHED, Words
from repro.data.specs import Ioi
from repro.data.text_specs import FLIPS
from repro.data.word_tokenizer import WordTokenizer
from repro.errors import UserError
from repro.training.lm_tokenizer import build

FAMILIES = ("standard", "long", "late", "early", "three_names")
REAL = Path(os.environ.get("REPRO_TEST_TOKENIZERS", "nowhere")) / "gpt2"
real = pytest.mark.skipif(
    not (REAL / "vocab.json").exists(), reason="set REPRO_TEST_TOKENIZERS to a folder with gpt2/vocab.json"
)
SLOTS = {"IO": "io", "S1": "s1", "S2": "s2", "PLACE": "place", "OBJECT": "object", "C": "c"}


def prompts_of(name: str, n: int = 60) -> PromptSet:
    both = [each.in_order(order) for order in ("BABA", "ABBA") for each in family(name)]
    return draw(both, PUBLISHED, n, 0)


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    """Byte-level BPE as GPT-2's, trained on the words here, so that each becomes one token."""
    words = ["to", *PUBLISHED.names, *PUBLISHED.places, *PUBLISHED.objects, *PUBLISHED.animals]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=5000, show_progress=False, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"]
    )
    tokenizer.train_from_iterator([f"x {word} {word}" for word in words] * 3, trainer)
    return tokenizer


def check_words(made: Tokenised, decode: Any, keys: dict[str, str] = SLOTS) -> None:
    """Every slot's column decodes to the word in the slot, behind a space; END is the last word."""
    for key, field in keys.items():
        if key not in made.positions:
            continue
        found = made.batch.tokens[torch.arange(len(made.prompts)), made.positions[key]].tolist()
        assert [decode([i]) for i in found] == [" " + getattr(p, field) for p in made.prompts.prompts], key
    for prompt, row, end in zip(made.prompts.prompts, made.batch.tokens, made.positions["END"], strict=True):
        assert decode([int(row[end])]).strip() == prompt.text.split()[-1]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("bos", [False, True])
def test_positions_decode_to_the_named_words(bpe: Tokenizer, name: str, bos: bool) -> None:
    made = tokenise(prompts_of(name), bpe, bos=bos)
    assert {"IO", "S1", "S2", "END", "S1+1", "IO-1"} <= set(made.positions)
    check_words(made, bpe.decode)
    for prompt, row, mask in zip(made.prompts.prompts, made.batch.tokens, made.batch.mask, strict=True):
        ids = row[mask].tolist()
        assert ids[0] == bpe.token_to_id("<|endoftext|>") or not bos
        assert bpe.decode(ids[int(bos) :]) == prompt.text


@pytest.mark.parametrize("name", [name for name in FLIPS if "final" not in name])
def test_positions_follow_every_flip(bpe: Tokenizer, name: str) -> None:
    check_words(tokenise(flip(prompts_of("standard"), name), bpe), bpe.decode)


def test_positions_follow_inserted_sentences(bpe: Tokenizer) -> None:
    source = prompts_of("standard")
    plain, longer = tokenise(source, bpe), tokenise(adversarial(source, "IO"), bpe)
    check_words(longer, bpe.decode)
    assert torch.equal(plain.positions["IO"], longer.positions["IO"])  # the first mention
    moved = longer.positions["END"] - plain.positions["END"]
    assert torch.equal(moved, longer.positions["S2"] - plain.positions["S2"]) and bool((moved > 0).all())


def test_labels_groups_and_target(bpe: Tokenizer) -> None:
    source = prompts_of("standard")
    made, with_target = tokenise(source, bpe), tokenise(source, bpe, target=True)
    assert [bpe.decode([int(i)]) for i in made.answer] == [f" {p.answer}" for p in source.prompts]
    assert [bpe.decode([int(i)]) for i in made.wrong] == [f" {p.wrong}" for p in source.prompts]
    assert torch.equal(with_target.positions["END"], made.positions["END"])
    rows = torch.arange(len(source))
    assert torch.equal(with_target.batch.tokens[rows, made.positions["END"] + 1], made.answer)
    wrong = tokenise(flip(source, "final"), bpe, target=True)
    assert torch.equal(wrong.batch.tokens[rows, made.positions["END"] + 1], made.wrong)
    for rows_of_group in source.groups.values():
        assert len({int(made.groups[i]) for i in rows_of_group}) == 1
    assert len(set(made.groups.tolist())) == len(source.groups)


def test_known_columns() -> None:
    """By hand: start, Then, comma, N1, and, N2, went, to, the, place, stop, S2, gave, a, object, to."""
    words = ["<start>", *"Then , Mary and John went to the store . gave a ring Ann Bob Cat".split()]
    lists = Words(names=("Mary", "John", "Ann", "Bob", "Cat"), places=("store",), objects=("ring",))
    source = PromptSet((fill(family("standard")[0], "Mary", "John", "store", "ring"),), lists)
    at = {
        key: int(column)
        for key, column in tokenise(source, WordTokenizer(tuple(words)), bos=True).positions.items()
    }
    assert at == {
        "START": 1, "S1-1": 2, "S1": 3, "S1+1": 4, "IO-1": 4, "IO": 5, "IO+1": 6, "PLACE": 9, "PUNCT": 10,
        "S2-1": 10, "S2": 11, "S2+1": 12, "OBJECT": 14, "END": 15,
    }  # fmt: skip
    abc = tokenise(flip(source, "ABC"), WordTokenizer(tuple(words)), bos=True).positions
    assert [int(abc[key]) for key in ("IO1", "IO2", "IO1+1", "S")] == [3, 5, 4, 11]


def test_early_templates_move_the_first_names_only(bpe: Tokenizer) -> None:
    late, early = (
        tokenise(PromptSet(tuple(fill(t, "Mary", "John", "store", "ring") for t in family(name))), bpe)
        for name in ("late", "early")
    )
    for key, moved in (("IO", 1), ("S1", 1), ("S1+1", 1)):
        assert (late.positions[key] - early.positions[key]).tolist() == [moved] * 8


def test_pairs_of_an_abc_corruption_are_aligned_and_longer_ones_are_not(bpe: Tokenizer) -> None:
    data = ioi.load(Ioi(n=40))
    pairs = data.pairs(bpe)
    pairs.require_aligned()
    assert len(pairs) == 40 and pairs.source == data.source and pairs.is_published
    names = torch.stack([pairs.position(key) for key in ("IO", "S1", "S2")], dim=1)
    differ = pairs.clean.tokens != pairs.corrupt.tokens
    assert torch.equal(differ, torch.zeros_like(differ).scatter(1, names, True))
    with pytest.raises(UserError, match="same length"):
        data.pairs(bpe, ["prefix"]).require_aligned()
    with pytest.raises(UserError, match="position IO.*same column"):
        data.pairs(bpe, ["order"]).require_aligned()
    data.pairs(bpe, ["order"]).require_aligned(["S2", "END"])
    with pytest.raises(UserError, match="one column for all prompts"):
        pairs.column("END")
    one = ioi.load(Ioi(n=40, templates=[1], order="BABA")).pairs(bpe)
    assert one.column("S2") == int(one.positions["S2"][0])


def test_names_of_several_tokens_are_listed(bpe: Tokenizer) -> None:
    lists = Words(names=("Mary", "John", "Zbigniew", "Quetzalcoatl", "Amy"))
    source = draw(family("standard")[:1], lists, 5, 0)
    with pytest.raises(
        UserError, match=r"2 of 21 are not: Zbigniew \(\d+ tokens\), Quetzalcoatl.*data.words="
    ):
        tokenise(source, bpe)


def test_unknown_words_are_named() -> None:
    source = draw(family("standard")[:1], PUBLISHED, 2, 0)
    with pytest.raises(UserError, match=r"Christopher \(unknown\), Jessica \(unknown\)"):
        single_tokens(source, WordTokenizer(("<start>", "Michael", "and")))


def test_words_that_share_a_token_are_refused() -> None:
    class Blind:
        """A tokenizer that reads the first letter only."""

        unk_token_id = None

        def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
            return [ord(word[0]) for word in text.split()]

    with pytest.raises(UserError, match="Michael and Matthew are"):
        tokenise(prompts_of("standard"), Blind())


def test_templates_that_begin_with_a_name_are_refused(bpe: Tokenizer) -> None:
    source = draw(own(["[S] and [IO] were here. [S] spoke to"]), PUBLISHED, 5, 0)
    with pytest.raises(UserError, match="must not begin with a name"):
        tokenise(source, bpe)


def test_no_tokenizer_and_no_start_token() -> None:
    with pytest.raises(UserError, match="this model has no tokenizer.*data=token_pairs"):
        tokenise(prompts_of("standard"), None)
    with pytest.raises(UserError, match="data.bos=false"):
        start_token(Tokenizer(models.BPE()))


@real
def test_published_words_are_single_tokens_of_gpt2() -> None:
    from transformers import GPT2TokenizerFast

    tokenizer = GPT2TokenizerFast.from_pretrained(str(REAL))
    ids = single_tokens(prompts_of("standard"), tokenizer)
    assert len(ids) == 115 and ids["Mary"] == 5335 and ids["John"] == 1757 and len(set(NAMES)) == 99
    for name in FAMILIES:
        for chain in ([], ["ABC"], ["prefix"], ["S+1", "middle"]):
            check_words(tokenise(corrupt(prompts_of(name), chain), tokenizer, bos=True), tokenizer.decode)
    remix = tokenise(
        PromptSet((fill(family("standard")[0], "Mary", "John", "store", "ring"),)), tokenizer, True
    )
    assert remix.batch.tokens.shape == (1, 16) and int(remix.batch.tokens[0, 0]) == 50256
    late, early = (
        tokenise(PromptSet(tuple(fill(t, "Mary", "John", "store", "ring") for t in family(name))), tokenizer)
        for name in ("late", "early")
    )
    moves = {
        key: set((late.positions[key] - early.positions[key]).tolist()) for key in ("IO", "S1", "S2", "END")
    }
    assert moves == {"IO": {1}, "S1": {1}, "S2": {0}, "END": {0}}


def test_a_tokenizer_without_a_token_for_unknown_words() -> None:
    """As trained models of small worlds have it; the library then raises a bare Exception."""
    words = build(["<s>", "Mary", "John", "and"], "<s>")
    with pytest.raises(UserError, match="cannot encode .*UNK.*data.words=FILE.json"):
        tokenise(draw(family("standard")[:1], PUBLISHED, 2, 0), words)
