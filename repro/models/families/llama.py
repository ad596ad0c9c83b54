"""Llama and its close relatives (Mistral, Qwen2, Qwen3): grouped keys and values, gated MLP, RMS norms."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor

from repro.models.language_model import LanguageModel, Layer


class LlamaLayer(Layer):
    upcasts_softmax = True

    def __init__(self, index: int, block: Any, config: Any, rotary: Any) -> None:
        inner = block.self_attn
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        super().__init__(index, block, inner, inner.o_proj, heads, kv_heads)
        self.first_norm, self.second_norm = block.input_layernorm, block.post_attention_layernorm
        self.mlp_entry, self.down = block.mlp, block.mlp.down_proj
        # Mistral has one window for all layers, Qwen one a layer.
        everywhere = config.sliding_window if config.model_type == "mistral" else None
        self.window = getattr(inner, "sliding_window", everywhere)
        self._rotary = rotary

    def project(self, attn_in: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inner = self.attention
        q = inner.q_proj(attn_in).unflatten(-1, (self.heads, -1))
        k = inner.k_proj(attn_in).unflatten(-1, (self.kv_heads, -1))
        v = inner.v_proj(attn_in).unflatten(-1, (self.kv_heads, -1))
        if hasattr(inner, "q_norm"):  # Qwen3
            q, k = inner.q_norm(q), inner.k_norm(k)
        q, k = self._rotated(q, k, attn_in, position_ids)
        return q, k, v

    def keys(self, attn_in: Tensor, position_ids: Tensor) -> Tensor:
        k = self.attention.k_proj(attn_in).unflatten(-1, (self.kv_heads, -1))
        k = self.attention.k_norm(k) if hasattr(self.attention, "k_norm") else k
        return self._rotated(k, k, attn_in, position_ids)[1]

    def key_map(self) -> tuple[Tensor, Tensor | None] | None:
        return None if hasattr(self.attention, "k_norm") else super().key_map()

    def unrotated(self, q: Tensor, position_ids: Tensor) -> Tensor:
        q = q.expand(-1, position_ids.shape[1], -1, -1)
        return self._rotated(q, q, q, position_ids, back=True)[0]

    def _rotated(
        self, q: Tensor, k: Tensor, like: Tensor, position_ids: Tensor, back: bool = False
    ) -> tuple[Tensor, Tensor]:
        cos, sin = self._rotary(like, position_ids)
        rotate = sys.modules[type(self.attention).__module__].apply_rotary_pos_emb
        return rotate(q, k, cos, -sin if back else sin, unsqueeze_dim=2)

    def allowed(self, queries: Tensor, keys: Tensor) -> Tensor:
        causal = super().allowed(queries, keys)
        if self.window is None:
            return causal
        return causal & (keys[..., None, :] > queries[..., :, None] - self.window)

    def mlp_hidden(self, mlp_in: Tensor) -> Tensor:
        mlp: Any = self.block.mlp
        return mlp.act_fn(mlp.gate_proj(mlp_in)) * mlp.up_proj(mlp_in)


def adapt(hf: Any, tokenizer: Any) -> LanguageModel:
    """A LlamaForCausalLM, or a model built of the same parts."""
    inner = hf.model
    layers = [LlamaLayer(i, block, hf.config, inner.rotary_emb) for i, block in enumerate(inner.layers)]
    return LanguageModel(hf, tokenizer, "llama", layers, inner.embed_tokens, inner.norm)
