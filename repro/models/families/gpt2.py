"""GPT-2: fused projections, stored input by output; learned positions; tied unembedding."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from repro.models.language_model import LanguageModel, Layer


class Gpt2Layer(Layer):
    def __init__(self, index: int, block: Any, heads: int) -> None:
        super().__init__(index, block, block.attn, block.attn.c_proj, heads, heads)
        self.first_norm, self.second_norm = block.ln_1, block.ln_2
        self.mlp_entry, self.down = block.mlp, block.mlp.c_proj

    def project(self, attn_in: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = self.attention.c_attn(attn_in).split(self.attention.split_size, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in parts)
        return q, k, v

    def keys(self, attn_in: Tensor, position_ids: Tensor) -> Tensor:
        fused, width = self.attention.c_attn, self.attention.split_size
        keys = attn_in @ fused.weight[:, width : 2 * width] + fused.bias[width : 2 * width]
        return keys.unflatten(-1, (self.heads, -1))

    def value_map(self) -> tuple[Tensor, Tensor]:
        return self._third(2)

    def key_map(self) -> tuple[Tensor, Tensor]:
        return self._third(1)

    def _third(self, which: int) -> tuple[Tensor, Tensor]:
        """Weight [H, d, D] and bias [H, D] of queries (0), keys (1) or values (2)."""
        fused, width = self.attention.c_attn, self.attention.split_size
        part = slice(which * width, (which + 1) * width)
        weight = fused.weight[:, part].unflatten(-1, (self.heads, -1)).transpose(0, 1)
        return weight, fused.bias[part].unflatten(-1, (self.heads, -1))

    def mlp_hidden(self, mlp_in: Tensor) -> Tensor:
        mlp = self.block.mlp
        return mlp.act(mlp.c_fc(mlp_in))  # type: ignore[union-attr,operator]


def adapt(hf: Any, tokenizer: Any) -> LanguageModel:
    """A GPT2LMHeadModel with its parts named."""
    # The other order of multiplication matters in half precision only; the attention interface lacks it.
    for block in hf.transformer.h:
        block.attn.reorder_and_upcast_attn = False
    layers = [Gpt2Layer(i, block, hf.config.n_head) for i, block in enumerate(hf.transformer.h)]
    return LanguageModel(hf, tokenizer, "gpt2", layers, hf.transformer.wte, hf.transformer.ln_f)
