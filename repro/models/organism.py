"""Small language models with random weights, of the library's own classes."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoConfig, OPTConfig, PretrainedConfig

from repro.models.specs import Organism, TextOrganism


def build(spec: Organism, vocabulary: int, start: int | None, seed: int) -> Any:
    """A model of the spec in float32, without dropout, with eager attention, initialised by the library.

    start: id of the start token, if there is one. seed: of the initial weights; the process' own random
    numbers are left as they were.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            configuration(spec, vocabulary, start), dtype=torch.float32, attn_implementation="eager"
        )
    return model.eval()


def small_gpt2(spec: TextOrganism, vocabulary: int, context: int, seed: int) -> Any:
    """A GPT-2 of the spec for so many tokens, initialised as by `build`; without a start token."""
    given = GPT2Config(
        n_layer=spec.depth, n_head=spec.heads, n_embd=spec.width, n_positions=context,
        initializer_range=spec.init_range, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        vocab_size=vocabulary, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(given, dtype=torch.float32, attn_implementation="sdpa")
    return model.eval()


def configuration(spec: Organism, vocabulary: int, start: int | None) -> PretrainedConfig:
    """The library's configuration of the spec's architecture."""
    inner = spec.mlp_width or 4 * spec.width
    common: dict[str, Any] = {
        "vocab_size": vocabulary, "bos_token_id": start, "eos_token_id": None, "use_cache": True,
        "tie_word_embeddings": True,
    }  # fmt: skip
    if spec.architecture == "gpt2":
        return GPT2Config(
            n_layer=spec.depth, n_head=spec.heads, n_embd=spec.width, n_inner=inner, n_positions=spec.context,
            initializer_range=spec.init_range, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **common,
        )  # fmt: skip
    if spec.architecture == "gpt_neo":
        near, far = spec.local_layers, spec.depth - spec.local_layers
        kinds = [[[kind], count] for kind, count in (("local", near), ("global", far)) if count]
        return GPTNeoConfig(
            num_layers=spec.depth, num_heads=spec.heads, hidden_size=spec.width, intermediate_size=inner,
            max_position_embeddings=spec.context, attention_types=kinds, window_size=spec.window,
            initializer_range=spec.init_range, resid_dropout=0.0, embed_dropout=0.0, attention_dropout=0.0,
            **common,
        )  # fmt: skip
    return OPTConfig(
        num_hidden_layers=spec.depth, num_attention_heads=spec.heads, hidden_size=spec.width, ffn_dim=inner,
        max_position_embeddings=spec.context, word_embed_proj_dim=spec.width, do_layer_norm_before=True,
        init_std=spec.init_range, dropout=0.0, attention_dropout=0.0, pad_token_id=None, **common,
    )  # fmt: skip
