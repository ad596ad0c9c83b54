"""Tiny random language models of every family, made in memory."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import transformers

from repro.models.huggingface import wrap
from repro.models.language_model import LanguageModel

_SMALL = {"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
          "max_position_embeddings": 32, "intermediate_size": 40}  # fmt: skip
_LLAMA = {**_SMALL, "num_key_value_heads": 2}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", {"vocab_size": 61, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 32}),
    "gpt_neo": ("GPTNeoConfig", {"vocab_size": 61, "hidden_size": 24, "num_layers": 3, "num_heads": 4,
                                 "max_position_embeddings": 32, "window_size": 3,
                                 "attention_types": [[["local", "global", "local"], 1]]}),
    "gptj": ("GPTJConfig", {"vocab_size": 61, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 32,
                            "rotary_dim": 4}),
    "opt": ("OPTConfig", {"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 3,
                          "num_attention_heads": 4,
                          "max_position_embeddings": 32, "ffn_dim": 40, "word_embed_proj_dim": 24}),
    "opt_post_norm": ("OPTConfig", {"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 3,
                                    "num_attention_heads": 4, "max_position_embeddings": 32, "ffn_dim": 40,
                                    "word_embed_proj_dim": 12, "do_layer_norm_before": False}),
    "gpt_neox": ("GPTNeoXConfig", {**_SMALL, "rotary_pct": 0.5}),
    "gpt_neox_sequential": ("GPTNeoXConfig", {**_SMALL, "use_parallel_residual": False}),
    "llama": ("LlamaConfig", _LLAMA),
    "mistral": ("MistralConfig", {**_LLAMA, "sliding_window": 4}),
    "qwen2": ("Qwen2Config", _LLAMA),
    "qwen3": ("Qwen3Config", {**_LLAMA, "head_dim": 8}),
}  # fmt: skip
KINDS = list(CONFIGS)
EAGER_ONLY = ("gpt_neo", "gptj")


def tiny(
    kind: str, attention: str = "eager", dtype: torch.dtype = torch.float32, seed: int = 0
) -> LanguageModel:
    """A random model whose every weight matters: biases and norms are random, too."""
    name, values = CONFIGS[kind]
    config = getattr(transformers, name)(**values, bos_token_id=0, eos_token_id=0, pad_token_id=1)
    config._attn_implementation = attention
    torch.manual_seed(seed)
    hf = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.normal_(std=0.35)
        for module in hf.modules():
            if "Norm" in type(module).__name__ and getattr(module, "weight", None) is not None:
                module.weight.add_(1.0)
    return wrap(hf.to(dtype))


class _Double:
    """PyTorch, in which what says float32 means float64."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def exact(kind: str, monkeypatch: pytest.MonkeyPatch, attention: str = "eager") -> LanguageModel:
    """A model that computes in float64 throughout: GPT-Neo and GPT-J cast queries and keys to float32.

    Two ways to the same number otherwise differ by the rounding of float32, and by how it falls on this CPU.
    """
    model = tiny(kind, "eager" if kind in EAGER_ONLY else attention, torch.float64)
    if kind in EAGER_ONLY:
        monkeypatch.setattr(sys.modules[type(model.layers[0].attention).__module__], "torch", _Double())
        monkeypatch.setattr(type(model.layers[0]), "upcasts_scores", False)
    return model
