"""What fine-tuning costs before an analysis looks at the model, from the config alone. Imports no PyTorch."""

from __future__ import annotations

import hashlib
import json
from typing import Any

PUBLISHED_BLOCKS = 4656  # where only the text tells
TOKENS_A_WORD = 1.4  # of small byte-level vocabularies on English


def step_flops(shape: Any, blocks: float, length: int) -> float:
    """Operations of one pass of training over so many blocks: forward, and back to all weights."""
    back = shape.backward_flops(length, length, weight_gradients=True)
    return blocks * (shape.forward_flops(length, length) + back)


def training(model: Any, shape: Any) -> tuple[str, float, str]:
    """Digest, operations, and words of what a tuned model (`repro.models.tuned_specs`) needs once."""
    text, length = model.text, getattr(model.text, "block", 512)
    blocks = getattr(text, "train", None) or PUBLISHED_BLOCKS
    flops = model.tuning.epochs * step_flops(shape, blocks, length)
    says = f"fine-tuning: {model.tuning.epochs} epochs of {blocks:,} blocks of {length} tokens"
    words = getattr(text, "pretraining_words", 0)
    if words and getattr(model, "pretraining", None) is not None:
        tokens = TOKENS_A_WORD * words
        flops += model.pretraining.epochs * step_flops(shape, tokens / length, length)
        says += f", after {model.pretraining.epochs} epochs of about {tokens:,.0f} tokens"
    plain = json.dumps(model.training_fingerprint(), sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest(), flops, f"{says}; none if it was trained before"
