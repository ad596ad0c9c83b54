"""GPT-J: attention and MLP read the same normalised input; rotary on part of a head; biased unembedding.

Up to transformers 5.23 attention is a method of its module, with a table of positions of its own; from 5.24
on it is behind the attention interface as in other families, and the table belongs to the model.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from repro.models.language_model import LanguageModel, Layer


class GptjLayer(Layer):
    upcasts_scores = True

    def __init__(self, index: int, block: Any, heads: int, positions: Any = None) -> None:
        super().__init__(index, block, block.attn, block.attn.out_proj, heads, heads)
        self.core_method = "_attn" if hasattr(block.attn, "_attn") else None
        self._positions = positions or block.attn  # the module that has the table
        self.first_norm = self.second_norm = block.ln_1
        self.mlp_entry, self.down = block.mlp, block.mlp.fc_out
        self.reads_mid = False

    @property
    def scaling(self) -> float:
        return 1 / self.attention.scale_attn if self.core_method else self.attention.scaling

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        if not self.core_method:
            return super().scores(q, k)
        # Divided, not multiplied with the inverse, as the library does.
        raw = (
            torch.matmul(q.float().transpose(1, 2), k.float().permute(0, 2, 3, 1)) / self.attention.scale_attn
        )
        return raw.to(torch.promote_types(q.dtype, torch.float32))

    def project(self, attn_in: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inner = self.attention
        q, k, v = (
            p(attn_in).unflatten(-1, (self.heads, -1)) for p in (inner.q_proj, inner.k_proj, inner.v_proj)
        )
        sin, cos = self._angles(k, position_ids)
        return self._rotate(q, sin, cos), self._rotate(k, sin, cos), v

    def keys(self, attn_in: Tensor, position_ids: Tensor) -> Tensor:
        k = self.attention.k_proj(attn_in).unflatten(-1, (self.heads, -1))
        return self._rotate(k, *self._angles(k, position_ids))

    def unrotated(self, q: Tensor, position_ids: Tensor) -> Tensor:
        sin, cos = self._angles(q, position_ids)
        return self._rotate(q.expand(-1, position_ids.shape[1], -1, -1), -sin, cos)

    def _angles(self, like: Tensor, position_ids: Tensor) -> tuple[Tensor, ...]:
        table = self._positions.embed_positions.to(position_ids.device)[position_ids].to(like.dtype)
        return table.split(table.shape[-1] // 2, dim=-1)

    def _rotate(self, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        rotate = sys.modules[type(self.attention).__module__].apply_rotary_pos_emb
        width = self.attention.rotary_dim or x.shape[-1]
        return torch.cat([rotate(x[..., :width], sin, cos), x[..., width:]], dim=-1)

    def mlp_hidden(self, mlp_in: Tensor) -> Tensor:
        mlp: Any = self.block.mlp
        return mlp.act(mlp.fc_in(mlp_in))


def adapt(hf: Any, tokenizer: Any) -> LanguageModel:
    """A GPTJForCausalLM with its parts named."""
    positions = getattr(hf.transformer, "rotary_emb", None)
    layers = [GptjLayer(i, block, hf.config.n_head, positions) for i, block in enumerate(hf.transformer.h)]
    return LanguageModel(hf, tokenizer, "gptj", layers, hf.transformer.wte, hf.transformer.ln_f)
