"""Models tuned on a text: the published recipe by hand, what is shared, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from training import tuned_cases
from training.tuned_cases import HARDWARE, spec
from transformers import AutoModelForCausalLM

from repro import stopping
from repro.data.lm_tasks import generator
from repro.errors import UserError
from repro.models.specs import Model
from repro.training import lm_loop, lm_store, tuned_store
from repro.training.tuned_store import Origin


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one tuned model."""
    folder = tmp_path_factory.mktemp("store")
    tuned_cases.model(folder)
    return folder


def test_the_recipe_is_adamw_over_shuffled_epochs(store: Path) -> None:
    """The same with PyTorch's own optimiser in a plain loop, from the same start."""
    origin = Origin(spec(), store)
    start, _ = origin.start()
    blocks = load_file(origin.folder / tuned_store.BLOCKS)["train"]
    start.train()
    optimizer = torch.optim.AdamW(
        start.parameters(), lr=5e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01
    )
    for epoch in range(2):
        order = generator("blocks", 1004, epoch).permutation(24)
        for at in range(3):
            batch = blocks[order[8 * at : 8 * at + 8]]
            logits = start(batch).logits[:, :-1]
            loss = functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), batch[:, 1:].reshape(-1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    tuned = AutoModelForCausalLM.from_pretrained(origin.folder)
    # Predictions are compared: the bias of keys has no gradient but rounding, and Adam makes steps of it.
    query = load_file(origin.folder / tuned_store.BLOCKS)["query"]
    with torch.no_grad():
        torch.testing.assert_close(tuned(query).logits, start.eval()(query).logits, atol=1e-4, rtol=1e-4)


def test_the_last_incomplete_batch_is_dropped(store: Path) -> None:
    origin = Origin(spec(), store)
    assert origin.recipe(24).steps == 6 and origin.recipe(31).steps == 6 and origin.recipe(32).steps == 8
    with pytest.raises(UserError, match=r"7 blocks to train on make no batch of 8"):
        origin.recipe(7)


def test_the_start_is_shared_and_the_tuned_model_is_not(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name for path in store.iterdir()}
    assert len(before) == 2
    other = Origin(spec(tuning={"seed": 5}), store)
    assert other.ensure().name not in before and len(list(store.iterdir())) == 3
    monkeypatch.setattr(lm_loop, "run", lambda *_: pytest.fail("trained again"))
    assert tuned_cases.model(store, tuning={"seed": 5}).origin == other


def test_it_loads_with_its_tokenizer_blocks_and_facts(store: Path) -> None:
    model = tuned_cases.model(store)
    origin = model.origin
    found = tuned_store._texts(origin.spec).blocks(model.tokenizer)
    assert torch.equal(found.train.tokens, origin.blocks().train.tokens)
    assert torch.equal(found.query.tokens, origin.blocks().query.tokens)
    text = " In 1850 , the river . \n"
    assert model.tokenizer.decode(model.tokenizer(text)["input_ids"]) == text
    facts = json.loads((origin.folder / lm_store.FACTS).read_text())
    assert facts["note"] == "Small model trained by the harness: not the paper's." and facts["steps"] == 6
    with np.load(origin.folder / lm_store.HISTORY) as history:
        assert history["points"].tolist() == [0, 3, 6] and len(history["train_loss"]) == 6
        assert history["eval_query_loss"][-1] < history["eval_query_loss"][0]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_interrupted_training_gives_the_same_weights(
    dropout: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Path
) -> None:
    made = spec(tuning={"dropout": dropout})
    whole = Origin(made, tmp_path / "whole").ensure()
    broken = Origin(made, tmp_path / "broken")
    asked = iter([None] * 2 + ["stop"] * 2)
    tuned_store._pretrained(made, broken.store)
    with monkeypatch.context() as patched, pytest.raises(stopping.Stopped):
        patched.setattr(stopping, "asked", lambda: next(asked))
        broken.ensure()
    assert (broken.folder / lm_loop.STATE).exists()
    broken.ensure()
    assert (broken.folder / lm_store.WEIGHTS).read_bytes() == (whole / lm_store.WEIGHTS).read_bytes()
    if dropout:
        none = tuned_cases.model(store).origin.folder / lm_store.WEIGHTS
        assert none.read_bytes() != (whole / lm_store.WEIGHTS).read_bytes()


def test_a_checkpoint_is_tuned_on_the_users_own_token_ids(store: Path, tmp_path: Path) -> None:
    folder = tuned_cases.model(store).origin.folder
    ids = torch.randint(0, 300, (20, 12), generator=torch.Generator().manual_seed(0))
    save_file({"train": ids[:16], "query": ids[16:]}, tmp_path / "blocks.safetensors")
    data = {"kind": "token_blocks", "path": str(tmp_path / "blocks.safetensors")}
    made = Model.choose({"kind": "fine_tuned", "path": str(folder), "text": data}, "model")
    model = tuned_store.load(made, HARDWARE, tmp_path / "store")
    assert torch.equal(model.origin.blocks().train.tokens, ids[:16]) and model.family == "gpt2"
    assert model.origin.recipe(16).steps == 6  # three epochs, as published
    assert made.embedded == "" and spec().embedded


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"data": {"train": 5}}, r"5 blocks to train on make no batch of 8.*model.tuning.batch=5"),
    ({"pretraining": {"batch": 999}}, r"blocks to pretrain on, and a batch is 999.*pretraining_path"),
    ({"data": {"train": 5000}}, r"asked for 5004 blocks"),
    ({"heads": 3}, r"model.heads: must divide model.width"),
]  # fmt: skip


@pytest.mark.parametrize("values, says", REFUSED)
def test_what_cannot_be_trained_is_refused(values: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        tuned_cases.model(tmp_path, **values)


def test_token_ids_alone_are_nothing_to_pretrain_on(tmp_path: Path) -> None:
    ids = torch.arange(160).reshape(10, 16)
    save_file({"train": ids, "query": ids[:2].clone()}, tmp_path / "blocks.safetensors")
    data = {"kind": "token_blocks", "path": str(tmp_path / "blocks.safetensors")}
    given = {"kind": "text_organism", "text": data, "depth": 1, "width": 8, "vocabulary": 300}
    with pytest.raises(UserError, match=r"0 blocks to pretrain on.*model.pretraining.epochs=0"):
        tuned_store.load(Model.choose(given, "model"), HARDWARE, tmp_path)
    model = tuned_store.load(
        Model.choose({**given, "pretraining": {"epochs": 0}}, "model"), HARDWARE, tmp_path
    )
    assert model.vocabulary == 300 and model.tokenizer is None
