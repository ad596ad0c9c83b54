"""A Hugging Face causal language model, unmodified, with its parts under the harness' names.

Axes: `B` rows, `T` positions, `H` query heads, `K` key/value heads, `d` width, `D` head width, `F` MLP
hidden units, `V` vocabulary. `Layer` gives the parts of one block as functions of tensors, made of the same
modules as the library's forward pass, so that a fast path can recompute one token or one head exactly.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from repro.errors import UserError
from repro.models.offload import device_of


class Layer:
    """One block. A family's adapter says which module is which, and how queries, keys and values are made.

    block: takes resid_pre as first argument. attention: its input is attn_in, its first output attn_out.
    out: the output projection, whose input is z. mlp_entry: its input is mlp_in. down: input mlp_post,
    output mlp_out. mid_module: its output is resid_mid; None where that is attn_out plus resid_pre.
    reads_mid: the MLP reads resid_mid; False where it is parallel to attention.
    """

    # A method of the attention module that maps (q, k, v, mask) to (output, weights); None: the library's
    # attention interface does.
    core_method: str | None = None
    upcasts_scores: ClassVar[bool] = False  # scores and softmax are float32, whatever the dtype
    upcasts_softmax: ClassVar[bool] = False  # the eager softmax is float32, whatever the dtype

    def __init__(
        self, index: int, block: nn.Module, attention: Any, out: nn.Module, heads: int, kv_heads: int
    ) -> None:
        self.index, self.block, self.attention, self.out = index, block, attention, out
        self.heads, self.kv_heads = heads, kv_heads
        self.first_norm: nn.Module
        self.second_norm: nn.Module
        self.mlp_entry: nn.Module
        self.down: nn.Module
        self.mid_module: nn.Module | None = None
        self.reads_mid = True

    # to be given by a family

    def project(self, attn_in: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B,T,H,D], keys and values [B,T,K,D] as attention gets them, rotary positions applied."""
        raise NotImplementedError

    def mlp_hidden(self, mlp_in: Tensor) -> Tensor:
        """mlp_post [.., F] of mlp_in [.., d]."""
        raise NotImplementedError

    def keys(self, attn_in: Tensor, position_ids: Tensor) -> Tensor:
        """Keys [B,T,K,D] as `project` gives them, without queries and values where a family can."""
        return self.project(attn_in, position_ids)[1]

    def value_map(self) -> tuple[Tensor, Tensor | None]:
        """W_V [K,d,D] and its bias [K,D]: values are attn_in W_V plus bias, head by head."""
        return _by_head(self.attention.v_proj, self.kv_heads)

    def key_map(self) -> tuple[Tensor, Tensor | None] | None:
        """W_K [K,d,D] and its bias [K,D]: keys, before positions rotate them. None: they are not linear."""
        return _by_head(self.attention.k_proj, self.kv_heads)

    # may be given by a family

    def unrotated(self, q: Tensor, position_ids: Tensor) -> Tensor:
        """Queries [B,T,H,D] of q [B,1,H,D] whose products with keys that no position has rotated are those of
        q with the keys at positions [B,T]. Where positions do not rotate it is q.
        """
        return q

    def project_heads(
        self, attn_in: Tensor, position_ids: Tensor, heads: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`project` of some query heads h [B,T,h,D], with the keys and values of each, [B,T,h,D].

        A family that can leaves the other heads out of its matrix products.
        """
        q, k, v = self.project(attn_in, position_ids)
        shared = [head // (self.heads // self.kv_heads) for head in heads]
        return q[:, :, list(heads)], k[:, :, shared], v[:, :, shared]

    @property
    def scaling(self) -> float:
        """What queries times keys are multiplied with."""
        return self.attention.scaling

    # the same for all

    def norm1(self, resid_pre: Tensor) -> Tensor:
        """attn_in of resid_pre."""
        return self.first_norm(resid_pre)

    def norm2(self, resid_mid: Tensor) -> Tensor:
        """mlp_in of resid_mid; of resid_pre where attention and MLP are parallel."""
        return self.second_norm(resid_mid)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Scaled scores [B,H,Tq,Tk] of queries [B,Tq,H,D] and keys [B,Tk,K,D], not masked."""
        if self.upcasts_scores:
            q, k, kind = q.float(), k.float(), torch.promote_types(q.dtype, torch.float32)
        else:
            kind = q.dtype
        keys = per_query_head(k, q.shape[2]).permute(0, 2, 3, 1)
        return (torch.matmul(q.transpose(1, 2), keys) * self.scaling).to(kind)

    def allowed(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Whether a query position sees a key position, [.., Tq, Tk], of positions [.., Tq] and [.., Tk]."""
        return keys[..., None, :] <= queries[..., :, None]

    def pattern(self, scores: Tensor, allowed: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Attention pattern [B,H,Tq,Tk]: softmax over the allowed keys; a query with none attends nowhere."""
        low = torch.finfo(scores.dtype).min
        kind = torch.float32 if self._softmax_in_float32(scores.dtype) else None
        masked = torch.where(allowed, scores, low)
        pattern = torch.softmax(masked, dim=-1, dtype=kind).to(dtype or scores.dtype)
        return torch.where(allowed.any(-1, keepdim=True), pattern, 0.0)

    def mix(self, pattern: Tensor, v: Tensor) -> Tensor:
        """z [B,Tq,H,D] of a pattern [B,H,Tq,Tk] and values [B,Tk,K,D]."""
        values = per_query_head(v, pattern.shape[1]).transpose(1, 2)
        return torch.matmul(pattern.to(v.dtype), values).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
        """z of queries, keys and values: scores, softmax over the allowed keys, mixture of values."""
        return self.mix(self.pattern(self.scores(q, k), allowed, v.dtype), v)

    def attn_out(self, z: Tensor) -> Tensor:
        """attn_out [.., d] of z [.., H, D], output bias included."""
        return self.out(z.flatten(-2))

    def attn_out_of(self, z: Tensor, heads: Sequence[int]) -> Tensor:
        """attn_out of z [.., h, D] of some heads, as if the others' were 0; the output bias is there."""
        if len(heads) == self.heads:
            return self.attn_out(z)
        out = z.flatten(-2) @ self.output_matrix[list(heads)].flatten(0, 1)
        return out if self.output_bias is None else out + self.output_bias

    def head_out(self, z: Tensor, heads: Sequence[int] | None = None) -> Tensor:
        """What each head adds to the residual stream, [.., H, d]; the shared output bias is left out."""
        matrix = self.output_matrix if heads is None else self.output_matrix[list(heads)]
        return torch.einsum("...hc,hcd->...hd", z, matrix)

    @property
    def output_matrix(self) -> Tensor:
        """W_O by head, [H, D, d]."""
        weight = _input_by_output(self.out)
        return weight.view(self.heads, -1, weight.shape[-1])

    @property
    def output_bias(self) -> Tensor | None:
        """The bias after all heads are summed, [d]."""
        return self.out.bias  # type: ignore[return-value]

    def mlp(self, mlp_in: Tensor) -> Tensor:
        """mlp_out of mlp_in, [.., d]."""
        return self.down(self.mlp_hidden(mlp_in))

    def library_core(self) -> Callable[..., Any]:
        """The library's eager attention function of this family."""
        return sys.modules[type(self.attention).__module__].eager_attention_forward

    def _softmax_in_float32(self, dtype: torch.dtype) -> bool:
        if dtype in (torch.float16, torch.bfloat16):
            return True
        return self.upcasts_softmax and "eager" in str(self.attention.config._attn_implementation)


class LanguageModel:
    """A causal language model and its layers. Weights are frozen, dropout is off.

    parallel: attention and MLP both read the block's input (GPT-J, most GPT-NeoX), so there is no resid_mid.
    unembedding: [V, d]; tied to the embedding in GPT-2, GPT-Neo and OPT. origin: of a model that was
    tuned here, how (see `repro.training.tuned_store.Origin`).
    """

    origin: Any = None

    def __init__(
        self, hf: Any, tokenizer: Any, family: str, layers: Sequence[Layer], embedding: nn.Module,
        last_norm: nn.Module | None,
    ) -> None:  # fmt: skip
        self.hf, self.tokenizer, self.family, self.layers = hf, tokenizer, family, list(layers)
        self.embedding, self.last_norm = embedding, last_norm
        self.project_out: nn.Module | None = None  # OPT-350M only: to the narrower embeddings
        self.head = hf.get_output_embeddings()
        hf.eval().requires_grad_(False)
        config = hf.config.get_text_config()
        self.depth, self.width = len(self.layers), int(config.hidden_size)
        self.heads, self.kv_heads = self.layers[0].heads, self.layers[0].kv_heads
        self.head_width = self.layers[0].output_matrix.shape[1]
        self.mlp_width = _input_by_output(self.layers[0].down).shape[0]
        self.vocabulary = int(self.head.weight.shape[0])
        self.max_positions = int(config.max_position_embeddings)

    @property
    def parallel(self) -> bool:
        return not self.layers[0].reads_mid

    @property
    def dtype(self) -> torch.dtype:
        return self.hf.dtype

    @property
    def device(self) -> torch.device:
        """Where tokens go in."""
        return device_of(self.embedding)

    @property
    def unembedding(self) -> Tensor:
        """Unembedding matrix, [V, d]."""
        return self.head.weight

    @property
    def unembedding_bias(self) -> Tensor | None:
        """Bias of the logits, [V]; only GPT-J has one."""
        return getattr(self.head, "bias", None)

    def final_norm(self, resid: Tensor) -> Tensor:
        """The last residual stream, normalised, as the unembedding reads it."""
        normed = resid if self.last_norm is None else self.last_norm(resid)
        return normed if self.project_out is None else self.project_out(normed)

    def unembed(self, normed: Tensor, columns: Tensor | None = None) -> Tensor:
        """Logits [.., V] of final_norm [.., d]; with `columns` [.., C] (tokens) only those, [.., C]."""
        if columns is None:
            return self.head(normed)
        logits = torch.einsum("...d,...cd->...c", normed, self.unembedding[columns])
        return logits if self.unembedding_bias is None else logits + self.unembedding_bias[columns]

    def check_head(self, layer: int, head: int, where: str, kv: bool = False) -> None:
        """Refuse a head that the model does not have; kv: a key/value head."""
        heads = self.kv_heads if kv else self.heads
        if not (0 <= layer < self.depth and 0 <= head < heads):
            raise UserError(
                f"{where}: head {layer}.{head} does not exist. Valid: layers 0 to {self.depth - 1},"
                f" {'key/value ' if kv else ''}heads 0 to {heads - 1}"
            )


def per_query_head(x: Tensor, heads: int, dim: int = 2) -> Tensor:
    """What there is for every key/value head of an axis (keys [B,T,K,D]) for each of so many query heads."""
    return x if x.shape[dim] == heads else x.repeat_interleave(heads // x.shape[dim], dim=dim)


def _by_head(projection: Any, heads: int) -> tuple[Tensor, Tensor | None]:
    """Weight [heads, d, D] and bias [heads, D] of a Linear that makes something for every head."""
    weight = projection.weight.unflatten(0, (heads, -1)).transpose(1, 2)
    bias = projection.bias
    return weight, None if bias is None else bias.unflatten(0, (heads, -1))


def _input_by_output(module: nn.Module) -> Tensor:
    """A projection's weight as [input, output]: Conv1D stores it so, Linear the other way round."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight.T if isinstance(module, nn.Linear) else weight
