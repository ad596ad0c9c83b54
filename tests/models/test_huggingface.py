"""Loading checkpoints: what comes out equals the library's own model, and what cannot be loaded says why."""

from __future__ import annotations

import json

import pytest
import torch
from models.tiny_models import KINDS, tiny

from repro.data.token_batch import TokenBatch
from repro.errors import UserError
from repro.interventions.lm_run import run
from repro.models.huggingface import FAMILIES, load
from repro.models.specs import HuggingFace, Model

CPU = {"device": "cpu", "device_map": None}
BATCH = TokenBatch.of([[5, 9, 30, 2], [7, 8]], pad_id=1)


def spec(path, **values) -> HuggingFace:
    chosen = Model.choose({"kind": "hf", "path": str(path), **values}, "model")
    assert isinstance(chosen, HuggingFace)
    return chosen


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_checkpoint_gives_the_same_logits(kind, tmp_path):
    made = tiny(kind)
    made.hf.save_pretrained(tmp_path)
    loaded = load(spec(tmp_path, attention="eager"), CPU)
    assert loaded.tokenizer is None and loaded.dtype == torch.float32
    assert torch.equal(run(loaded, BATCH).logits, run(made, BATCH).logits)
    assert not any(parameter.requires_grad for parameter in loaded.hf.parameters()) and not loaded.hf.training
    shape = (loaded.depth, loaded.heads, loaded.width, loaded.vocabulary, loaded.max_positions)
    assert shape == (3, 4, 24, 61, 32)


def test_shards_and_dtypes(tmp_path):
    made = tiny("opt")
    made.hf.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    exact = load(spec(tmp_path, dtype="float64"), CPU)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(
        run(exact, BATCH).logits.float(), run(made, BATCH).logits, atol=1e-4, rtol=1e-4
    )
    assert load(spec(tmp_path, dtype="bfloat16"), CPU).dtype == torch.bfloat16


def test_attention_is_chosen_by_family(tmp_path):
    tiny("gptj").hf.save_pretrained(tmp_path / "gptj")
    tiny("gpt2").hf.save_pretrained(tmp_path / "gpt2")
    assert load(spec(tmp_path / "gptj"), CPU).hf.config._attn_implementation == "eager"
    assert load(spec(tmp_path / "gpt2"), CPU).hf.config._attn_implementation == "sdpa"
    with pytest.raises(UserError, match="gptj has eager attention only"):
        load(spec(tmp_path / "gptj", attention="sdpa"), CPU)


def test_folders_that_cannot_be_loaded(tmp_path):
    with pytest.raises(UserError, match="no config.json"):
        load(spec(tmp_path), CPU)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UserError, match="no weights"):
        load(spec(tmp_path), CPU)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled weights only.*Convert them"):
        load(spec(tmp_path), CPU)
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="'bert'. Supported: gpt2, gpt_neo, gptj, opt, gpt_neox, llama"):
        load(spec(tmp_path), CPU)


def test_weights_that_do_not_belong_to_the_config_are_refused(tmp_path):
    """The library would fill what is missing with random numbers, and only warn."""
    tiny("gpt2").hf.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "n_layer": 4}))
    with pytest.raises(UserError, match="lacks weights.*transformer.h.3"):
        load(spec(tmp_path), CPU)


def test_weights_of_other_shapes_are_refused(tmp_path):
    tiny("gpt2").hf.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 70}))
    with pytest.raises(UserError, match="in other shapes: .*transformer.wte.weight"):
        load(spec(tmp_path), CPU)


def test_damaged_files_are_named(tmp_path):
    tiny("gpt2").hf.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"half a file")
    with pytest.raises(UserError, match="cannot be loaded: Error while deserializing"):
        load(spec(tmp_path), CPU)
    for content in ("{half", "[]"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match="config.json is no config of a model"):
            load(spec(tmp_path), CPU)


def test_a_name_that_cannot_be_reached(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="no-such/model cannot be loaded.*\n.*model.path=FOLDER"):
        load(spec("no-such/model"), CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(tmp_path):
    tiny("gpt2").hf.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="PyTorch sees no GPU"):
        load(spec(tmp_path), {"device": "cuda", "device_map": None})


def test_every_family_has_its_adapter():
    from importlib import import_module

    for module in set(FAMILIES.values()):
        assert callable(import_module(f"repro.models.families.{module}").adapt)
