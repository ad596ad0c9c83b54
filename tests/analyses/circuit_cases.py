"""A two-layer GPT-2 with known weights: one head copies the name, the one after it writes against it.

Width: a dimension a name, then three for positions. Head 0.1 attends from END to the name (column 1) and
writes it; head 1.0 does the same `against` times; all other heads and all MLPs write nothing. Nothing else
says which name it is, so without these heads the logits of all names are equal.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers

from repro.data.token_pairs import PromptPairs, from_mapping
from repro.models.huggingface import wrap
from repro.models.language_model import LanguageModel

NAMES = 8
START, END_TOKEN = NAMES, NAMES + 1
VOCABULARY = NAMES + 2
WIDTH, HEADS = 16, 2
HEAD_WIDTH = WIDTH // HEADS
LENGTH = 3


def model(against: float = 0.0) -> LanguageModel:
    """In float64. Head width 8: one dimension a name."""
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=2, n_head=HEADS, n_positions=LENGTH, n_inner=WIDTH,
        bos_token_id=START, eos_token_id=START, tie_word_embeddings=False,
    )  # fmt: skip
    config._attn_implementation = "eager"
    hf = transformers.GPT2LMHeadModel(config).double()
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.zero_()
        stem: Any = hf.transformer
        stem.wte.weight[:NAMES, :NAMES] = torch.eye(NAMES, dtype=torch.float64)
        for column in range(LENGTH):
            stem.wpe.weight[column, NAMES + column] = 3.0
        for norm in (stem.ln_f, *(block.ln_1 for block in stem.h), *(block.ln_2 for block in stem.h)):
            norm.weight.fill_(1.0)
        _copies(stem.h[0].attn, 1, 1.0)
        _copies(stem.h[1].attn, 0, against)
        hf.lm_head.weight[:NAMES, :NAMES] = torch.eye(NAMES, dtype=torch.float64)
    return wrap(hf)


def _copies(attention, head: int, factor: float) -> None:
    """Queries at END meet keys at column 1 and nothing else; values are the name, written `factor` times."""
    first = head * HEAD_WIDTH
    attention.c_attn.weight[NAMES + LENGTH - 1, first] = 20.0
    attention.c_attn.weight[NAMES + 1, WIDTH + first] = 20.0
    for name in range(NAMES):
        attention.c_attn.weight[name, 2 * WIDTH + first + name] = 1.0
        attention.c_proj.weight[first + name, name] = factor


def pairs(count: int = 6) -> PromptPairs:
    """Start, a name, END; the answer is the name. Twins have other names; all are as frequent."""
    names = [i % NAMES for i in range(count)]
    others = [(name + 3) % NAMES for name in names]
    wrong = [(name + 1) % NAMES for name in names]
    return from_mapping(
        {
            "clean": [[START, name, END_TOKEN] for name in names],
            "corrupt": [[START, name, END_TOKEN] for name in others],
            "answer": names,
            "wrong": wrong,
            "positions": {"END": 2, "S2": 1, "S1+1": 0, "IO": 1},
        },
        "made up",
        "0" * 64,
    )
