"""How large a transformer is: parameters, bytes and floating-point operations, without its weights.

Counted per family as transformers builds it, tied weights once. A multiplication and an addition are two
operations. Imports neither PyTorch nor JAX nor transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from repro.costs import Work

DTYPE_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
LINEAR, LAYER_NORM, RMS_NORM = "linear", 2, 1


@dataclass(frozen=True)
class Family:
    """What all checkpoints of an architecture have in common.

    Biases of queries, keys and values, of the attention's output, of the MLP, of the unembedding; norms a
    block, and vectors a norm has (weight and bias, or weight alone); gated: the MLP has a third matrix;
    position_offset: rows of the position table before the first position; head_norms: vectors of head width
    in a block (norms of queries and keys).
    """

    qkv_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    unembedding_bias: bool = False
    norms: int = 2
    norm_vectors: int = LAYER_NORM
    gated: bool = False
    position_offset: int = 0
    head_norms: int = 0


_RMS = Family(
    qkv_bias=False, out_bias=False, mlp_bias=False, norm_vectors=RMS_NORM, gated=True
)  # also Mistral
FAMILIES = {
    "gpt2": Family(),
    "gpt_neo": Family(qkv_bias=False),
    "gptj": Family(qkv_bias=False, out_bias=False, unembedding_bias=True, norms=1),
    "opt": Family(position_offset=2),
    "gpt_neox": Family(),
    "llama": _RMS,
    "mistral": _RMS,
    "qwen2": Family(qkv_bias=True, out_bias=False, mlp_bias=False, norm_vectors=RMS_NORM, gated=True),
    "qwen3": Family(False, False, False, norm_vectors=RMS_NORM, gated=True, head_norms=2),
}


@dataclass(frozen=True)
class Shape:
    """The sizes of one language model.

    layers, heads: of attention; kv_heads: heads that keys and values have (grouped queries share them).
    width: channels of the residual stream; head_width: of one head; mlp_width: hidden units of the MLP.
    vocabulary: rows of the embedding; positions: learned ones (0: rotary). tied: embedding and unembedding
    are one. embedding_width: channels of the embedding where it is projected to the stream (OPT 350M).
    final_norm: whether the stream is normalised before the unembedding. biases: what the family has, or not
    (`None`) as a checkpoint says: of queries, keys and values, of the attention's output, of the MLP.
    """

    family: str
    layers: int
    heads: int
    kv_heads: int
    width: int
    head_width: int
    mlp_width: int
    vocabulary: int
    positions: int = 0
    tied: bool = True
    embedding_width: int | None = None
    final_norm: bool = True
    qkv_bias: bool | None = None
    out_bias: bool | None = None
    mlp_bias: bool | None = None

    @property
    def _of_family(self) -> Family:
        return FAMILIES[self.family]

    @property
    def attention_weights(self) -> int:
        """Entries of one layer's four attention matrices."""
        inner = self.heads * self.head_width
        return self.width * (2 * inner + 2 * self.kv_heads * self.head_width)

    @property
    def mlp_weights(self) -> int:
        """Entries of one layer's MLP matrices."""
        return (3 if self._of_family.gated else 2) * self.width * self.mlp_width

    @property
    def layer_parameters(self) -> int:
        """All parameters of one layer."""
        family = self._of_family
        inner, kv = self.heads * self.head_width, self.kv_heads * self.head_width
        biases = (inner + 2 * kv) * _said(self.qkv_bias, family.qkv_bias)
        biases += self.width * _said(self.out_bias, family.out_bias)
        hidden = self.mlp_width * (2 if family.gated else 1)
        biases += (hidden + self.width) * _said(self.mlp_bias, family.mlp_bias)
        norms = family.norms * family.norm_vectors * self.width + family.head_norms * self.head_width
        return self.attention_weights + self.mlp_weights + biases + norms

    @property
    def embedding_parameters(self) -> int:
        """Token and position embeddings, projections of them, and the unembedding unless it is tied."""
        family, width = self._of_family, self.embedding_width or self.width
        tables = self.vocabulary * width * (1 if self.tied else 2)
        tables += self.vocabulary if family.unembedding_bias else 0
        learned = (self.positions + family.position_offset) * self.width if self.positions else 0
        return tables + learned + self._projections

    @property
    def _projections(self) -> int:
        return 2 * self.embedding_width * self.width if self.embedding_width not in (None, self.width) else 0

    @property
    def parameters(self) -> int:
        """All parameters, tied ones once."""
        final = self._of_family.norm_vectors * self.width if self.final_norm else 0
        return self.layers * self.layer_parameters + self.embedding_parameters + final

    def weights_bytes(self, dtype: str) -> int:
        """Bytes of all parameters in float16, bfloat16, float32 or float64."""
        return self.parameters * DTYPE_BYTES[dtype]

    def forward_flops(self, length: int, unembedded: float = 0, causal: bool = False) -> float:
        """Of one forward pass over a sequence of `length` tokens, with logits at `unembedded` positions.

        2 operations a matrix entry and token, and 4 x layers x width x length^2 for attention scores and the
        sum over values; causal: kernels that skip what is masked do half of the latter.
        """
        matrices = 2 * length * self._matrix_entries
        return matrices + self._attention(length, causal) + unembedded * self.unembedding_flops

    def backward_flops(
        self, length: int, unembedded: float = 0, causal: bool = False, weight_gradients: bool = False
    ) -> float:
        """Of the pass back to activations: as much again in matrices, twice in attention.

        weight_gradients: also to weights, which needs the matrices' share a second time.
        """
        matrices = 2 * length * self._matrix_entries + unembedded * self.unembedding_flops
        return (2 if weight_gradients else 1) * matrices + 2 * self._attention(length, causal)

    @property
    def unembedding_flops(self) -> float:
        """Of the logits at one position."""
        return 2 * self.vocabulary * (self.embedding_width or self.width)

    @property
    def _matrix_entries(self) -> int:
        return self.layers * (self.attention_weights + self.mlp_weights) + self._projections

    def _attention(self, length: int, causal: bool) -> float:
        full = 4 * self.layers * self.heads * self.head_width * length**2
        return full / 2 if causal else full

    def saved_bytes(self, tokens: int, length: int, dtype: str, attention: Literal["eager", "sdpa"]) -> float:
        """Activations of all layers that a backward pass to activations needs, weights frozen.

        tokens: in flight together, in sequences of `length`. With a fused kernel 10 numbers a token and
        channel (measured on OPT, MLP four times as wide); eager attention also keeps the patterns.
        """
        if attention == "sdpa":
            numbers = 10 * tokens * self.width
        else:
            numbers = 9 * tokens * self.width + self.heads * tokens * length
        return self.layers * numbers * DTYPE_BYTES[dtype]

    def passing_bytes(
        self, tokens: int, length: int, dtype: str, attention: Literal["eager", "sdpa"]
    ) -> float:
        """The most that one layer of a forward pass holds at a time: stream, MLP units, scores."""
        channels = 6 * self.width + self.mlp_width * (2 if self._of_family.gated else 1)
        scores = 2 * self.heads * tokens * length if attention == "eager" else 0
        return (channels * tokens + scores) * DTYPE_BYTES[dtype]

    def work_bytes(self, work: Work, dtype: str, attention: Literal["eager", "sdpa"]) -> float:
        """Activations and logits of one batch of this work."""
        tokens = work.batch * work.length
        passing = self.passing_bytes(tokens, work.length, dtype, attention)
        logits = work.batch * work.unembedded * self.vocabulary * (DTYPE_BYTES[dtype] + 4)  # and in float32
        if not work.backwards:
            return passing + logits
        saved = self.saved_bytes(tokens, work.length, dtype, attention)
        if work.recomputed:  # the stream before every layer, and one layer's own
            saved = saved / self.layers + self.layers * tokens * self.width * DTYPE_BYTES[dtype]
        return saved + passing + logits + (self.weights_bytes(dtype) if work.weight_gradients else 0)


def _said(checkpoint: bool | None, family: bool) -> bool:
    return family if checkpoint is None else checkpoint
