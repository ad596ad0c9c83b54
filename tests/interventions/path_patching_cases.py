"""Prompts and settings that path patching is tested with."""

from __future__ import annotations

from typing import Any

import torch
from models.tiny_models import EAGER_ONLY, tiny

from repro.data.token_batch import Side, TokenBatch
from repro.data.token_pairs import PromptPairs
from repro.interventions.path_patching_nodes import Receiver, Sender, parse_receiver
from repro.models.language_model import LanguageModel

# name -> stages of receivers, and positions. Depth 3, four heads; k and v exist for two key/value heads.
PATHS: dict[str, tuple[list[list[str]], str]] = {
    "logits": ([], "END"),
    "queries": ([["1.0.q", "1.3.q", "2.1.q"]], "END"),
    "values": ([["1.1.v@S2", "2.0.v@S2"]], "END"),
    "keys": ([["2.0.k@S2", "1.1.k"]], "END"),
    "mixed": ([["1.1.q@S2", "1.1.v@S1", "1.1.k@S2", "2.0.q", "2.0.v@S1"]], "END"),
    "all": ([["1.0.q", "2.1.v", "2.1.k"]], "all"),
    "all_and_named": ([["1.0.k", "2.1.q@S2"]], "all"),
    "chain": ([["1.1.v@S2", "1.0.q@S2"], ["2.0.k@S2", "2.3.q"]], "END"),
    "long_chain": (
        [["0.1.q", "0.0.v@S2", "1.0.q"], ["1.1.v", "1.0.v@S2"], ["2.0.k@S2", "2.1.q", "2.1.v"]],
        "END",
    ),
}
MLPS, DOWNSTREAM = ("recompute", "freeze"), ("recompute", "filter")


def receivers(stages: list[list[str]]) -> list[list[Receiver]]:
    return [[parse_receiver(one) for one in stage] for stage in stages]


def model_of(kind: str, dtype: torch.dtype = torch.float64) -> LanguageModel:
    """Eager OPT, GPT-NeoX and Llama take the softmax in float32 whatever the dtype; SDPA does not."""
    return tiny(kind, "eager" if kind in EAGER_ONLY else "sdpa", dtype)


def pairs_of(side: Side = "right", lengths: tuple[int, ...] = (7, 9, 8), seed: int = 0) -> PromptPairs:
    """Random prompts of several lengths; END is not always the last token, S2 comes before S1 in one."""
    generator = torch.Generator().manual_seed(seed)
    clean, corrupt = (
        [torch.randint(2, 61, (n,), generator=generator).tolist() for n in lengths] for _ in range(2)
    )
    answer, wrong = torch.randperm(50, generator=generator)[: 2 * len(lengths)].view(2, -1)
    skipped = [max(lengths) - n if side == "left" else 0 for n in lengths]
    places = {
        "S1": [2 if i % 3 else 4 for i in range(len(lengths))],
        "S2": [3 for _ in lengths],
        "END": [n - 1 - i % 2 for i, n in enumerate(lengths)],
    }
    positions = {
        name: torch.tensor([a + skip for a, skip in zip(at, skipped, strict=True)])
        for name, at in places.items()
    }
    both: dict[str, Any] = {
        "clean": TokenBatch.of(clean, 1, side), "corrupt": TokenBatch.of(corrupt, 1, side),
    }  # fmt: skip
    return PromptPairs(
        **both, answer=answer, wrong=wrong, positions=positions, corrupt_positions=positions,
        groups=torch.zeros(len(lengths), dtype=torch.long), source="test", sha256="", kind="token_pairs",
    )  # fmt: skip


# Single heads and MLPs, the embedding, and groups: across layers, and heads together with MLPs above them.
GROUPS: list[tuple[Sender, ...]] = [
    (Sender(-1),),
    *(((Sender(layer, head),)) for layer in range(3) for head in (0, 2, None)),
    (Sender(0, 1), Sender(1, 3)),
    (Sender(0, 0), Sender(0), Sender(1)),
    (Sender(-1), Sender(1, 1)),
]
FEW = [GROUPS[0], GROUPS[1], GROUPS[-2]]
