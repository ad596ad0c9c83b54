"""Tiny random language models of every family, made in memory."""

from __future__ import annotations

from typing import Any

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
