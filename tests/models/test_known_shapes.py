"""Shapes from config.json, counted against the modules that transformers builds of it (on no device)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from repro.errors import UserError
from repro.models.known_shapes import KNOWN, find, from_mapping

SMALL = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 50}
MODERN = {**SMALL, "num_key_value_heads": 2, "intermediate_size": 40}
GPT = {"n_embd": 24, "n_layer": 3, "n_head": 4, "vocab_size": 50, "n_positions": 16}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", GPT),
    "gpt2 with other MLP": ("gpt2", {**GPT, "n_inner": 30}),
    "gpt2 untied": ("gpt2", {**GPT, "tie_word_embeddings": False}),
    "gpt_neo": (
        "gpt_neo",
        {"hidden_size": 24, "num_layers": 2, "num_heads": 4, "vocab_size": 50, "max_position_embeddings": 16,
         "attention_types": [[["global", "local"], 1]]},
    ),
    "gptj": ("gptj", {**GPT, "rotary_dim": 4}),
    "opt": ("opt", {**SMALL, "ffn_dim": 30, "word_embed_proj_dim": 24}),
    "opt without biases": ("opt", {**SMALL, "ffn_dim": 30, "word_embed_proj_dim": 24, "enable_bias": False}),
    "opt with projections": (
        "opt",
        {**SMALL, "ffn_dim": 30, "word_embed_proj_dim": 10, "do_layer_norm_before": False},
    ),
    "gpt_neox": ("gpt_neox", {**SMALL, "intermediate_size": 40}),
    "gpt_neox without biases": ("gpt_neox", {**SMALL, "intermediate_size": 40, "attention_bias": False}),
    "llama": ("llama", MODERN),
    "llama tied, with biases": (
        "llama",
        {**MODERN, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "head_dim": 10},
    ),
    "mistral": ("mistral", MODERN),
    "qwen2": ("qwen2", MODERN),
    "qwen3": ("qwen3", {**MODERN, "head_dim": 8}),
}  # fmt: skip


def counted(config: Any) -> int:
    """Parameters of the model that transformers builds, tied ones once; nothing is allocated."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        model.tie_weights()
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("case", CASES)
def test_counts_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    from transformers import CONFIG_MAPPING

    kind, values = CASES[case]
    config = CONFIG_MAPPING[kind](**values)
    config.save_pretrained(tmp_path)
    shape = find(str(tmp_path))
    assert shape is not None and shape.parameters == counted(config)
    # Older files leave out what is the default.
    saved = json.loads((tmp_path / "config.json").read_text())
    terse = from_mapping({**values, "model_type": saved["model_type"]})
    assert terse is not None and terse.parameters == shape.parameters


@pytest.mark.parametrize("name", ["gpt2-xl", "facebook/opt-66b", "facebook/opt-350m", "eleutherai/pythia-1b"])
def test_well_known_names_are_as_large_as_transformers_builds_them(name: str) -> None:
    from transformers import GPT2Config, GPTNeoXConfig, OPTConfig

    shape = KNOWN[name]
    common: dict[str, Any] = {"vocab_size": shape.vocabulary}
    sizes = {
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
    }
    if shape.family == "gpt2":
        config: Any = GPT2Config(n_embd=shape.width, n_layer=shape.layers, n_head=shape.heads, **common)
    elif shape.family == "opt":
        projected = shape.embedding_width or shape.width
        config = OPTConfig(**sizes, **common, ffn_dim=shape.mlp_width, word_embed_proj_dim=projected,
                           do_layer_norm_before=shape.final_norm)  # fmt: skip
    else:
        config = GPTNeoXConfig(**sizes, **common, intermediate_size=shape.mlp_width)
    assert shape.parameters == counted(config)


def test_a_name_that_is_neither_known_nor_cached_is_unknown(tmp_path: Path) -> None:
    assert find("somebody/something-7b", {"HF_HOME": str(tmp_path)}) is None


def test_a_cached_name_is_read_from_the_cache(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--somebody--something" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps({**GPT, "model_type": "gpt2"}))
    shape = find("somebody/something", {"HF_HOME": str(tmp_path)})
    assert shape is not None and shape.width == 24


def test_other_architectures_are_unknown() -> None:
    assert from_mapping({"model_type": "mamba", "hidden_size": 24}) is None


@pytest.mark.parametrize("text", ["{", '{"model_type": "gpt2"}', "[]"])
def test_a_damaged_configuration_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"model.path: .*config.json cannot be read"):
        find(str(tmp_path))
