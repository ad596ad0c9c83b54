"""GPT-NeoX and Pythia: projections fused head by head; rotary positions on part of it; usually parallel."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor
from torch.nn import functional

from repro.models.language_model import LanguageModel, Layer


class GptNeoxLayer(Layer):
    upcasts_softmax = True

    def __init__(self, index: int, block: Any, heads: int, rotary: Any) -> None:
        super().__init__(index, block, block.attention, block.attention.dense, heads, heads)
        self.first_norm, self.second_norm = block.input_layernorm, block.post_attention_layernorm
        self.mlp_entry, self.down = block.mlp, block.mlp.dense_4h_to_h
        self.reads_mid = not block.use_parallel_residual
        self._rotary = rotary

    def project(self, attn_in: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fused = self.attention.query_key_value(attn_in).unflatten(-1, (self.heads, -1))
        q, k, v = fused.chunk(3, dim=-1)
        q, k = self._rotated(q, k, attn_in, position_ids)
        return q, k, v

    def keys(self, attn_in: Tensor, position_ids: Tensor) -> Tensor:
        weight, bias = self._third(1)
        k = functional.linear(attn_in, weight.flatten(0, 1), None if bias is None else bias.flatten())
        k = k.unflatten(-1, (self.heads, -1))
        return self._rotated(k, k, attn_in, position_ids)[1]

    def value_map(self) -> tuple[Tensor, Tensor | None]:
        weight, bias = self._third(2)
        return weight.transpose(1, 2), bias

    def key_map(self) -> tuple[Tensor, Tensor | None]:
        weight, bias = self._third(1)
        return weight.transpose(1, 2), bias

    def unrotated(self, q: Tensor, position_ids: Tensor) -> Tensor:
        q = q.expand(-1, position_ids.shape[1], -1, -1)
        return self._rotated(q, q, q, position_ids, back=True)[0]

    def _third(self, which: int) -> tuple[Tensor, Tensor | None]:
        """Weight [H, D, d] and bias [H, D] of queries (0), keys (1) or values (2)."""
        fused = self.attention.query_key_value
        weight, bias = fused.weight.unflatten(0, (self.heads, 3, -1))[:, which], fused.bias
        return weight, None if bias is None else bias.unflatten(0, (self.heads, 3, -1))[:, which]

    def _rotated(
        self, q: Tensor, k: Tensor, like: Tensor, position_ids: Tensor, back: bool = False
    ) -> tuple[Tensor, Tensor]:
        cos, sin = self._rotary(like, position_ids)
        rotate = sys.modules[type(self.attention).__module__].apply_rotary_pos_emb
        return rotate(q, k, cos, -sin if back else sin, unsqueeze_dim=2)

    def mlp_hidden(self, mlp_in: Tensor) -> Tensor:
        mlp: Any = self.block.mlp
        return mlp.act(mlp.dense_h_to_4h(mlp_in))


def adapt(hf: Any, tokenizer: Any) -> LanguageModel:
    """A GPTNeoXForCausalLM with its parts named."""
    inner = hf.gpt_neox
    layers = [
        GptNeoxLayer(i, block, hf.config.num_attention_heads, inner.rotary_emb)
        for i, block in enumerate(inner.layers)
    ]
    return LanguageModel(hf, tokenizer, "gpt_neox", layers, inner.embed_in, inner.final_layer_norm)
