"""How large the tasks of 2022 are, for estimates: documents of the hub's data sets, tokens as OPT has them.

Mean tokens of a context with its right continuation were measured on development data or 32 documents; those
of continuations, and all of mathqa, are rough. Demonstrations multiply a context by their number plus one.
"""

from __future__ import annotations

from repro.data.scored_specs import Workload

# training documents, evaluation documents, choices, tokens in all, of them the continuation
SIZES: dict[str, tuple[int, int, float, int, int]] = {
    "hellaswag": (39905, 10042, 4, 78, 25),
    "piqa": (16113, 1838, 2, 36, 20),
    "arc_easy": (2251, 2376, 4, 32, 5),
    "arc_challenge": (1119, 1172, 4, 37, 6),
    "openbookqa": (4957, 500, 4, 16, 4),
    "winogrande": (40398, 1267, 2, 22, 8),
    "boolq": (9427, 3270, 2, 163, 1),
    "cb": (250, 56, 3, 95, 1),
    "copa": (400, 100, 2, 14, 7),
    "wic": (5428, 638, 2, 53, 1),
    "wsc": (259, 104, 2, 59, 1),
    "multirc": (27243, 4848, 2, 339, 10),
    "rte": (2490, 277, 2, 81, 1),
    "record": (100730, 10000, 11.5, 256, 30),
    "mathqa": (29837, 2985, 5, 60, 4),
    "lambada": (5153, 5153, 1, 84, 2),
}
WINDOW = 2048  # tokens; longer texts are cut or refused


def workload(task: str, shot: int, examples: int | None, questions: int | None) -> Workload:
    """How much there is to score of one task. examples, questions: at most so many of each (None: all)."""
    train, evaluation, choices, tokens, continuation = SIZES[task]
    whole = min(WINDOW, tokens * (shot + 1))
    return Workload(
        task if shot == 0 else f"{task}.{shot}shot", min(train, examples or train), whole - 1,
        min(evaluation, questions or evaluation), choices, whole - continuation, continuation,
    )  # fmt: skip
