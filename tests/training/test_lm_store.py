"""The store of small language models: trained once, by one process, and read by the library."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from repro import locks
from repro.data.ioi_toy import Toy
from repro.data.lm_tasks import build
from repro.errors import UserError
from repro.models import organism
from repro.models.specs import Organism
from repro.run_directory import RunDirectory
from repro.training import lm_evaluation, lm_loop, lm_store, lm_tokenizer

ROOT = Path(lm_store.__file__).parents[2]
SMALL = {
    "depth": 1, "heads": 2, "width": 16, "context": 24, "steps": 10, "batch": 4, "evaluate_every": 5,
    "task": {"kind": "repeats", "vocabulary": 12, "length": 16, "probe_sequences": 6},
}  # fmt: skip
CPU = {"device": "cpu"}
# Saves after every step, and takes its time over it, so that a kill falls in between.
TRAIN = """
import json, sys, time
from pathlib import Path
from repro.models.specs import Organism
from repro.training import lm_loop, lm_store
save = lm_loop._save
def slowly(*arguments):
    save(*arguments)
    time.sleep(float(sys.argv[3]))
lm_loop.SAVE_SECONDS, lm_loop._save = 0.0, slowly
lm_store.ensure(Organism.parse(json.loads(sys.argv[1]), "model"), Path(sys.argv[2]))
"""


def spec(**values: Any) -> Organism:
    return Organism.parse({**SMALL, **values}, "model")


def started(made: Organism, store: Path, pause: float) -> subprocess.Popen:
    arguments = [json.dumps(made.model_dump(mode="json")), str(store), str(pause)]
    return subprocess.Popen([sys.executable, "-c", TRAIN, *arguments], cwd=ROOT)


def wait_for(condition: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_two_processes_one_killed_and_the_same_weights(tmp_path: Path) -> None:
    """The second waits for the first, which is killed, and goes on where that one was."""
    made = spec(steps=30)
    directory = lm_store.folder(tmp_path / "shared", made)
    first = started(made, tmp_path / "shared", 0.2)
    wait_for((directory / lm_loop.STATE).exists)
    second = started(made, tmp_path / "shared", 0.0)
    time.sleep(1.0)
    assert first.poll() is None and RunDirectory(directory).status().state == "running"
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert second.wait(120) == 0
    alone = lm_store.ensure(made, tmp_path / "alone")
    assert (directory / lm_store.WEIGHTS).read_bytes() == (alone / lm_store.WEIGHTS).read_bytes()
    assert RunDirectory(directory).status().state == "done"
    assert not (directory / lm_loop.STATE).exists()


def test_it_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = lm_store.ensure(spec(), tmp_path)
    monkeypatch.setattr(lm_loop, "run", lambda *_: pytest.fail("trained again"))
    assert lm_store.ensure(spec(), tmp_path) == first
    assert lm_store.ensure(spec(dtype="float64", attention="sdpa"), tmp_path) == first
    assert lm_store.folder(tmp_path, spec(seed=1)) != first


def test_it_loads_as_it_was_in_memory(tmp_path: Path) -> None:
    made = spec(init_range=0.3)
    model, task = organism.build(made, 12, None, lm_store.initial_seed(made.seed)), build(made.task)
    (tmp_path / "state").mkdir()
    history = lm_loop.run(made, model, task, tmp_path / "state")
    directory = lm_store.ensure(made, tmp_path)
    tokens = torch.arange(30).reshape(2, 15) % 12
    read = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager")
    loaded = lm_store.load(made, CPU, tmp_path)
    with torch.no_grad():
        expected = model(tokens).logits
        assert torch.equal(read(tokens).logits, expected)
        assert torch.equal(loaded.hf(tokens).logits, expected)
    assert (loaded.depth, loaded.heads, loaded.vocabulary, loaded.family) == (1, 2, 12, "gpt2")
    facts = json.loads((directory / lm_store.FACTS).read_text())
    assert facts["metrics"] == lm_evaluation.measure_all(model, task.probes()) == history.last
    assert facts["steps"] == 10 and facts["spec"] == made.training_fingerprint() and facts["note"]
    with np.load(directory / lm_store.HISTORY) as arrays:
        assert arrays["train_loss"].tolist() == history.loss and arrays["points"].tolist() == [0, 5, 10]


@pytest.mark.parametrize("architecture", ["gpt_neo", "opt"])
def test_other_families_load_too(architecture: str, tmp_path: Path) -> None:
    made = spec(architecture=architecture, local_layers=int(architecture == "gpt_neo"))
    loaded = lm_store.load(made, CPU, tmp_path)
    assert loaded.family == architecture and loaded.hf(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 12)


def test_what_was_not_learned_is_refused_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = spec(until={"half_accuracy": 1.0})
    for _ in range(2):
        with pytest.raises(UserError, match=r"half_accuracy .*model\.steps=20\).*model\.until=null"):
            lm_store.ensure(made, tmp_path)
        monkeypatch.setattr(lm_loop, "run", lambda *_: pytest.fail("trained again"))


def test_a_failure_is_in_the_status_and_the_lock_is_free(tmp_path: Path) -> None:
    made = spec(learning_rate=1e30, warmup_steps=0)
    with pytest.raises(UserError, match="diverged"):
        lm_store.ensure(made, tmp_path)
    directory = lm_store.folder(tmp_path, made)
    status = RunDirectory(directory).status()
    assert status.state == "failed" and "diverged" in str(status.reason)
    assert not lm_store.is_done(directory)
    with locks.exclusive(directory / ".lock"):
        pass


def test_its_tokenizer_is_that_of_the_data(tmp_path: Path) -> None:
    """The library's tokenizer, read from the folder, gives the ids that the sentences are made of."""
    world = Toy()
    lm_tokenizer.build(world.tokenizer.words, "<start>").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert len(read) == len(world.tokenizer) and (read.bos_token_id, read.pad_token_id) == (0, 0)
    for text in world.prompts(50, seed=3, split="all").texts:
        for special in (True, False):
            ids = world.tokenizer.encode(text, add_special_tokens=special)
            assert read.encode(text, add_special_tokens=special) == ids
        assert read.decode(ids) == text == world.tokenizer.decode(ids)
    with pytest.raises(ValueError, match="twice"):
        lm_tokenizer.build(["a", "b", "a"], None)
