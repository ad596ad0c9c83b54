"""The small world: its size, its split of name pairs, its sentences, and that flips stay within its words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from repro.data import ioi
from repro.data.ioi_adversarial import adversarial
from repro.data.ioi_flips import flip
from repro.data.ioi_positions import tokenise
from repro.data.ioi_toy import WORLD, Toy
from repro.data.specs import IoiToy
from repro.data.text_specs import FLIPS
from repro.data.word_tokenizer import WordTokenizer
from repro.errors import UserError

TOY = Toy()


def test_sizes_are_those_of_the_description() -> None:
    assert (len(TOY.tokenizer), len(WORLD.names), len(WORLD.places), len(WORLD.objects)) == (111, 60, 10, 10)
    assert len(TOY.templates) == 16
    lengths = {len(TOY.tokenizer.encode(text)) for text in TOY.prompts(400, 0).texts}
    assert lengths == {13, 14, 15}


def test_a_fifth_of_the_pairs_never_occurs_in_training() -> None:
    held_out, train = set(TOY.pairs("held_out")), set(TOY.pairs("train"))
    assert (len(held_out), len(train)) == (354, 1416) and not held_out & train
    assert {name for pair in train for name in pair} == set(WORLD.names)
    tokens, mask = TOY.training_sentences(0, 3000)
    names = set(TOY.tokenizer.encode(" ".join(WORLD.names)))
    seen = {
        tuple(sorted(TOY.tokenizer.convert_ids_to_tokens([i for i in set(row.tolist()) if i in names])))
        for row in tokens
    }
    assert seen <= {tuple(sorted(pair)) for pair in train} and len(seen) > 1000
    assert {tuple(sorted((p.io, p.s1))) for p in TOY.prompts(500, 0).prompts} <= {
        tuple(sorted(pair)) for pair in held_out
    }
    assert TOY.pairs("held_out") != Toy(split_seed=1).pairs("held_out")


def test_training_sentences_end_with_the_indirect_object() -> None:
    tokens, mask = TOY.training_sentences(7, 50)
    again, _ = TOY.training_sentences(7, 50)
    assert np.array_equal(tokens, again) and tokens.shape == mask.shape == (50, TOY.window)
    assert (tokens[:, 0] == TOY.tokenizer.bos_token_id).all()
    prompts = TOY.prompts(50, 7, "train")
    for row, real, prompt in zip(tokens, mask, prompts.prompts, strict=True):
        assert TOY.tokenizer.decode(row[real][1:]) == f"{prompt.text} {prompt.io}"
        assert not real[real.sum() :].any()


@pytest.mark.parametrize("name", FLIPS)
def test_flips_use_no_other_words(name: str) -> None:
    made = tokenise(flip(TOY.prompts(100, 1), name), TOY.tokenizer, bos=True)
    assert int(made.batch.mask.sum(-1).max()) <= 32


def test_adversarial_sentences_use_no_other_words() -> None:
    for about in ("IO", "S"):
        assert len(tokenise(adversarial(TOY.prompts(200, 1), about), TOY.tokenizer).batch) == 200


def test_loaded_data_brings_its_own_tokenizer() -> None:
    data = ioi.load(IoiToy(n=30))
    pairs = data.pairs()
    assert data.toy is not None and not data.is_published
    pairs.require_aligned()
    pairs.check_vocabulary(111)
    words = data.toy.tokenizer.convert_ids_to_tokens(pairs.answer.tolist())
    assert words == data.prompts.labels[0]
    assert torch.equal(pairs.clean.tokens[:, 0], torch.zeros(30, dtype=torch.long))
    assert len(data.draw(5, 3)) == 5 and data.draw(5, 3) != data.draw(5, 4)


def test_word_tokenizer(tmp_path: Path) -> None:
    tokenizer = TOY.tokenizer
    text = "Then, Jessica and Kyle went to the store. Kyle gave a ring to"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("store", add_special_tokens=True)[0] == 0
    tokenizer.save(tmp_path / "words.json")
    assert WordTokenizer.read(tmp_path / "words.json") == tokenizer
    with pytest.raises(UserError, match="does not know: dragon"):
        tokenizer.encode("the dragon")
    with pytest.raises(UserError, match="every word once"):
        WordTokenizer(("a", "a"))
    with pytest.raises(UserError, match="Valid choices: all"):
        TOY.pairs("test")
