"""Models fine-tuned on blocks of a text, in the store of trained models, and the start that they share.

A start with random weights is pretrained once into <store>/<hash>/, whatever it is fine-tuned on afterwards.
The tuned model lies in <store>/<hash>/ with blocks.safetensors (train, query), which it was made of: a folder
that `model=hf model.path=FOLDER data=token_blocks data.path=FOLDER/blocks.safetensors` reads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save

from repro.data.token_blocks import TokenBlocks, from_tensors
from repro.errors import UserError
from repro.hardware import Hardware, cpu_share
from repro.models import huggingface, organism
from repro.models.language_model import LanguageModel
from repro.models.specs import HuggingFace
from repro.models.tuned_specs import FineTuned, TextOrganism, Tuned
from repro.results import write_atomic
from repro.training import lm_store, lm_tokenizer
from repro.training.block_source import BlockRecipe, BlockSource, steps_an_epoch
from repro.training.lm_loop import History
from repro.training.lm_store import Training, initial_seed

BLOCKS = "blocks.safetensors"


def load(spec: Tuned, hardware: Mapping[str, Any], store: Path) -> LanguageModel:
    """The tuned model on the device of the hardware profile; if need be, it is trained first.

    Its `origin` can train it again on some of the blocks.
    """
    profile = Hardware.parse(hardware, "hardware")
    device = huggingface.device_of(profile.device)
    threads = cpu_share(profile)
    origin = Origin(spec, Path(store), device, 0 if device == "cuda" or threads == 1 else threads)
    found = HuggingFace(path=str(origin.ensure()), dtype=spec.dtype, attention=spec.attention)
    model = huggingface.load(found, hardware, store)
    model.origin = origin
    return model


@dataclass(frozen=True)
class Origin:
    """How a tuned model was made: from which start, on which blocks.

    device: where it is trained; a start from random weights always is on the CPU. workers: processes that
    train side by side; 0: this one.
    """

    spec: Tuned
    store: Path
    device: str = "cpu"
    workers: int = 0

    @cached_property
    def folder(self) -> Path:
        """Where the tuned model lies; asked once, since it takes checksums of files of data and start."""
        return _place(self.store, self.spec.training_fingerprint())

    def ensure(self) -> Path:
        """The folder of the tuned model, which is trained if it is not there."""
        if not lm_store.is_done(self.folder):
            lm_store.complete(self.folder, None, self._tuning)
        return self.folder

    def blocks(self) -> TokenBlocks:
        """The blocks that it was tuned on and is asked about; of a tuned model."""
        return from_tensors(load_file(self.folder / BLOCKS), str(self.folder / BLOCKS), "")

    def start(self) -> tuple[Any, Any]:
        """The model it starts from, in float32 on the device, with its own dropout; and its tokenizer."""
        if isinstance(self.spec, TextOrganism):
            path, revision, device = str(_pretrained(self.spec, self.store)), None, "cpu"
        else:
            assert isinstance(self.spec, FineTuned)
            path, revision, device = self.spec.path, self.spec.revision, self.device
        found = HuggingFace(path=path, revision=revision, attention=self.spec.attention)
        loaded = huggingface.load(found, {"device": device})
        loaded.hf.requires_grad_(True)
        return loaded.hf, loaded.tokenizer

    def recipe(self, blocks: int, seed: int | None = None, measured: bool = True) -> BlockRecipe:
        """How so many blocks are trained on. seed: null is that of the spec. measured: after every epoch."""
        tuning = self.spec.tuning
        epoch = steps_an_epoch(blocks, tuning.batch)
        return BlockRecipe(
            tuning.seed if seed is None else seed, tuning.epochs * epoch, tuning.batch, tuning.learning_rate,
            tuning.weight_decay, epoch if measured else tuning.epochs * epoch, drops=tuning.dropout != 0,
        )  # fmt: skip

    def set_dropout(self, model: Any) -> None:
        """Give every dropout module of a model what the spec says; null leaves it to the checkpoint."""
        if self.spec.tuning.dropout is not None:
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = self.spec.tuning.dropout

    def _tuning(self) -> Training:
        model, tokenizer = self.start()
        found = _texts(self.spec).blocks(tokenizer)
        found.check_vocabulary(int(model.get_input_embeddings().weight.shape[0]))
        train, query = _arrays(found)
        context = int(getattr(model.config, "max_position_embeddings", train.shape[1]))
        if train.shape[1] > context:
            raise UserError(
                f"data.block: the model sees {context} tokens, and blocks have {train.shape[1]}. Give"
                f" data.block={context} or less"
            )
        save_blocks = save({"train": found.train.tokens, "query": found.query.tokens})
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.folder / BLOCKS, save_blocks)
        self.set_dropout(model)
        facts = {"note": self.spec.embedded, "spec": self.spec.training_fingerprint(), "source": found.source}
        source = BlockSource(train, {"query": query})
        return Training(self.recipe(len(train)), model, source, tokenizer, "fine-tuning", facts, note)


def note(history: History) -> str:
    """How far training is."""
    return f"loss {history.loss[-1]:.3f}" if history.loss else ""


def _place(store: Path, fingerprint: Mapping[str, Any]) -> Path:
    text = json.dumps(fingerprint, sort_keys=True, separators=(",", ":"))
    return store / hashlib.sha256(text.encode()).hexdigest()[:12]


def _texts(spec: Tuned) -> Any:
    return import_module(spec.text.module).load(spec.text)


def _pretrained(spec: TextOrganism, store: Path) -> Path:
    """The folder of the start that was pretrained, which is done if it was not."""
    folder = _place(store, spec.start_fingerprint())
    if not lm_store.is_done(folder):
        lm_store.complete(folder, None, lambda: _pretraining(spec))
    return folder


def _pretraining(spec: TextOrganism) -> Training:
    texts, recipe = _texts(spec), spec.pretraining
    tokenizer = None
    if isinstance(texts, TokenBlocks):
        found, blocks = texts, np.zeros((0, texts.train.length), np.int64)
        found.check_vocabulary(spec.vocabulary)
        vocabulary = spec.vocabulary
    else:
        tokenizer = lm_tokenizer.byte_level_bpe(texts.rows, spec.vocabulary)
        blocks, vocabulary = texts.pretraining(tokenizer), len(tokenizer)
        found = texts.blocks(tokenizer)
    if recipe.epochs and len(blocks) < recipe.batch:
        raise UserError(
            f"model.pretraining: {found.source} has {len(blocks)} blocks to pretrain on, and a batch is"
            f" {recipe.batch}. Give a text to pretrain on (data.pretraining_path, data.pretraining_split,"
            " data.pretraining_words), a longer one, or model.pretraining.epochs=0"
        )
    model = organism.small_gpt2(spec, vocabulary, found.train.length, initial_seed(spec.seed))
    steps = recipe.epochs * (len(blocks) // recipe.batch)
    stage = BlockRecipe(
        spec.seed, steps, recipe.batch, recipe.learning_rate, recipe.weight_decay, max(steps, 1)
    )
    facts = {"note": spec.embedded, "spec": spec.start_fingerprint(), "source": found.source}
    return Training(stage, model, BlockSource(blocks), tokenizer, "pretraining a small GPT-2", facts, note)


def _arrays(found: TokenBlocks) -> tuple[np.ndarray, np.ndarray]:
    if found.train.mask is not None or found.query.mask is not None:
        raise UserError(
            f"data: {found.source} has padding, and fine-tuning takes full blocks. Cut them to one length"
        )
    return found.train.tokens.numpy(), found.query.tokens.numpy()
