"""OPT: no MLP module; positions are offset by two; the 350M size normalises after, not before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional

from repro.models.language_model import LanguageModel, Layer


class OptLayer(Layer):
    upcasts_softmax = True

    def __init__(self, index: int, block: Any, heads: int) -> None:
        super().__init__(index, block, block.self_attn, block.self_attn.out_proj, heads, heads)
        self.first_norm, self.second_norm = block.self_attn_layer_norm, block.final_layer_norm
        self.mlp_entry, self.down = block.fc1, block.fc2
        self.post_norm = not block.do_layer_norm_before
        self.mid_module = self.first_norm if self.post_norm else None

    @property
    def scaling(self) -> float:
        return 1.0  # queries are scaled when they are made

    def norm1(self, resid_pre: Tensor) -> Tensor:
        return resid_pre if self.post_norm else super().norm1(resid_pre)

    def norm2(self, resid_mid: Tensor) -> Tensor:
        return resid_mid if self.post_norm else super().norm2(resid_mid)

    def project(self, attn_in: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inner = self.attention
        q, k, v = (
            part.unflatten(-1, (self.heads, -1))
            for part in (inner.q_proj(attn_in) * inner.scaling, inner.k_proj(attn_in), inner.v_proj(attn_in))
        )
        return q, k, v

    def keys(self, attn_in: Tensor, position_ids: Tensor) -> Tensor:
        return self.attention.k_proj(attn_in).unflatten(-1, (self.heads, -1))

    def project_heads(
        self, attn_in: Tensor, position_ids: Tensor, heads: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        inner, chosen = self.attention, list(heads)
        q, k, v = (
            _rows_of(projection, attn_in, self.heads, chosen)
            for projection in (inner.q_proj, inner.k_proj, inner.v_proj)
        )
        return q * inner.scaling, k, v

    def mlp_hidden(self, mlp_in: Tensor) -> Tensor:
        block: Any = self.block
        return block.activation_fn(block.fc1(mlp_in))


def _rows_of(projection: Any, x: Tensor, heads: int, chosen: list[int]) -> Tensor:
    """What a projection gives for some heads alone, [.., h, D]."""
    weight = projection.weight.unflatten(0, (heads, -1))[chosen].flatten(0, 1)
    bias = projection.bias
    bias = None if bias is None else bias.unflatten(0, (heads, -1))[chosen].flatten()
    return functional.linear(x, weight, bias).unflatten(-1, (len(chosen), -1))


def adapt(hf: Any, tokenizer: Any) -> LanguageModel:
    """An OPTForCausalLM with its parts named."""
    decoder = hf.model.decoder
    layers = [OptLayer(i, block, hf.config.num_attention_heads) for i, block in enumerate(decoder.layers)]
    model = LanguageModel(hf, tokenizer, "opt", layers, decoder.embed_tokens, decoder.final_layer_norm)
    model.project_out = decoder.project_out
    return model
