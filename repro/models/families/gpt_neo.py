"""GPT-Neo: global and local (sliding-window) attention in turn; scores are not scaled."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from repro.models.language_model import LanguageModel, Layer


class GptNeoLayer(Layer):
    core_method = "_attn"
    upcasts_scores = True

    def __init__(self, index: int, block: Any, heads: int, window: int) -> None:
        inner = block.attn.attention
        super().__init__(index, block, inner, inner.out_proj, heads, heads)
        self.first_norm, self.second_norm = block.ln_1, block.ln_2
        self.mlp_entry, self.down = block.mlp, block.mlp.c_proj
        self.window = window if inner.attention_type == "local" else None

    @property
    def scaling(self) -> float:
        return 1.0

    def project(self, attn_in: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inner = self.attention
        q, k, v = (
            p(attn_in).unflatten(-1, (self.heads, -1)) for p in (inner.q_proj, inner.k_proj, inner.v_proj)
        )
        return q, k, v

    def keys(self, attn_in: Tensor, position_ids: Tensor) -> Tensor:
        return self.attention.k_proj(attn_in).unflatten(-1, (self.heads, -1))

    def allowed(self, queries: Tensor, keys: Tensor) -> Tensor:
        causal = super().allowed(queries, keys)
        if self.window is None:
            return causal
        return causal & (keys[..., None, :] > queries[..., :, None] - self.window)

    def mlp_hidden(self, mlp_in: Tensor) -> Tensor:
        mlp: Any = self.block.mlp
        return mlp.act(mlp.c_fc(mlp_in))


def adapt(hf: Any, tokenizer: Any) -> LanguageModel:
    """A GPTNeoForCausalLM with its parts named."""
    config = hf.config
    layers = [
        GptNeoLayer(i, block, config.num_heads, config.window_size)
        for i, block in enumerate(hf.transformer.h)
    ]
    return LanguageModel(hf, tokenizer, "gpt_neo", layers, hf.transformer.wte, hf.transformer.ln_f)
