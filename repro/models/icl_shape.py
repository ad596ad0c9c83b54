"""How large an in-context-learning transformer is, and what training it costs, without JAX."""

from __future__ import annotations

from dataclasses import dataclass

from repro.models.shapes import DTYPE_BYTES
from repro.models.specs import IclTransformer

LEARNED_POSITIONS = 32
# Gradient of every weight, both moments of Adam, and the weights.
_STATE = 4


@dataclass(frozen=True)
class IclShape:
    """Sizes of one in-context-learning transformer. features: numbers of one exemplar; outputs: labels."""

    model: IclTransformer
    features: int
    outputs: int

    @property
    def layers(self) -> int:
        """Blocks."""
        return self.model.depth

    @property
    def heads(self) -> int:
        """Attention heads of a layer."""
        return self.model.heads

    @property
    def width(self) -> int:
        """Channels of the residual stream."""
        return self.model.width

    @property
    def _hidden(self) -> int:
        return 0 if self.model.mlp_ratio is None else int(self.model.mlp_ratio * self.width)

    @property
    def parameters(self) -> int:
        """All parameters."""
        d, hidden = self.width, self._hidden
        block = 4 * d * d + 2 * d
        if self.model.mlp_ratio is not None:
            block += 2 * d * hidden + hidden + d + 2 * d
        positions = LEARNED_POSITIONS * d if self.model.positions == "learned" else 0
        return self.layers * block + (self.features + 1) * d + self.outputs * (2 * d + 1) + 2 * d + positions

    def weights_bytes(self, dtype: str = "float32") -> int:
        """Bytes of all parameters."""
        return self.parameters * DTYPE_BYTES[dtype]

    def embedding_flops(self, exemplars: float) -> float:
        """Of projecting so many exemplars to the stream."""
        return 2 * exemplars * self.features * self.width

    def forward_flops(self, length: int, unembedded: float = 1, causal: bool = False) -> float:
        """Of one sequence of `length` tokens whose exemplars are projected already.

        The last block is computed at the `unembedded` positions only, but for its keys and values.
        """
        d = self.width
        total = 2 * unembedded * d * self.outputs
        for layer in range(self.layers):
            rows = unembedded if layer == self.layers - 1 else length
            total += 4 * d * d * (rows + length) + 4 * d * self._hidden * rows + 4 * d * rows * length
        return total

    def backward_flops(
        self, length: int, unembedded: float = 1, causal: bool = False, weight_gradients: bool = True
    ) -> float:
        """Of the pass back: as much as forward to activations, and again to weights."""
        return (2 if weight_gradients else 1) * self.forward_flops(length, unembedded, causal)

    def step_flops(self, batch: int, length: int, exemplars: float) -> float:
        """Of one training step. exemplars: how many are projected; no gradient goes back to them."""
        sequences = batch * (self.forward_flops(length) + self.backward_flops(length))
        return sequences + 2 * self.embedding_flops(exemplars)

    def state_bytes(self) -> int:
        """Of weights, gradients and moments while training."""
        return _STATE * self.weights_bytes("float32")
