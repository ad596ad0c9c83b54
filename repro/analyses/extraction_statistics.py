"""What extraction events add up to: rates, numbers of layers, and which sublayer comes first.

Prompts of the same text are one example, as in the released notebook of Geva et al. 2023 (arXiv 2304.14767):
one of them extracting is enough for the example, and their numbers of layers are added.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from repro.data.facts_records import Fact
from repro.interventions.vocabulary_projection import Vocabulary


def text_groups(facts: Sequence[Fact]) -> list[int]:
    """For each prompt the place of the first with the same text (or token ids)."""
    first: dict[object, int] = {}
    return [first.setdefault((fact.prompt, fact.tokens), place) for place, fact in enumerate(facts)]


def first_of_subject(facts: Sequence[Fact]) -> list[int]:
    """For each prompt the place of the first with the same subject, as text or as token ids."""
    first: dict[object, int] = {}
    found = []
    for place, fact in enumerate(facts):
        ids = None if fact.tokens is None or fact.span is None else fact.tokens[slice(*fact.span)]
        found.append(first.setdefault(fact.subject if ids is None else ids, place))
    return found


def by_example(event: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Numbers of events [example, layer] of events [prompt, layer] and the prompts' groups."""
    names, place = np.unique(group, return_inverse=True)
    total = np.zeros((len(names), event.shape[1]), dtype=np.int64)
    np.add.at(total, place, event.astype(np.int64))
    return total


def rate(event: np.ndarray, group: np.ndarray) -> float:
    """Examples with an event in any layer, in percent."""
    return float(100 * by_example(event, group).any(1).mean())


def statistics(event: np.ndarray, group: np.ndarray) -> dict[str, float]:
    """rate (%): examples with an event; layers: mean number of extracting layers; layers_if_any: of those."""
    counts = by_example(event, group).sum(1)
    some = counts > 0
    return {
        "rate": float(100 * some.mean()),
        "layers": float(counts.mean()),
        "layers_if_any": float(counts[some].mean()) if some.any() else float("nan"),
    }


def order(attention: np.ndarray, mlp: np.ndarray, group: np.ndarray) -> dict[str, float]:
    """Examples (%) in which both, one or none extract; of those with both, attention not after the MLP."""
    one, other = (by_example(event, group) > 0 for event in (attention, mlp))
    has_one, has_other = one.any(1), other.any(1)
    both = has_one & has_other
    not_after = one.argmax(1) <= other.argmax(1)
    return {
        "share.both": float(100 * both.mean()),
        "share.MHSA_only": float(100 * (has_one & ~has_other).mean()),
        "share.MLP_only": float(100 * (~has_one & has_other).mean()),
        "share.neither": float(100 * (~has_one & ~has_other).mean()),
        "MHSA_not_after_MLP": float(100 * not_after[both].mean()) if both.any() else float("nan"),
    }


def said(vocabulary: Vocabulary) -> dict[str, str]:
    """The note on which matrix vectors are read through."""
    return {"projection": f"{vocabulary.says}; no final norm"}
