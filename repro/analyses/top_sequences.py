"""The training blocks with the largest influence on a query, to be read.

Source: Grosse et al. 2023, and the analysis of kronfluence's examples/wikitext.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from repro.analyses import lm_inputs as lm
from repro.analyses.influence_scores import blocks_of
from repro.analyses.influence_study_specs import TopSequences
from repro.analyses.influence_variants import score_table
from repro.errors import UserError
from repro.models.language_model import LanguageModel
from repro.results import NamedArray, Result, write_atomic

REPORT = "report.txt"


def run(subject: Any, data: Any, record: Any, directory: Path | None, spec: TopSequences) -> Result:
    """Arrays: scores [query, train] of the chosen queries; top, bottom [query, rank] (numbers of blocks), and
    top_score, bottom_score. Scalars: words_found, 1 if the top block of the first of the queries has one of
    the words in it; word_overlap, the mean share of a query's rarer words (in at most a tenth of the training
    blocks) that its top block has, and word_overlap_chance, that of any training block.
    report.txt has the texts.
    """
    model = lm.model_of(subject)
    blocks = blocks_of(model, data)
    if max(spec.queries) >= len(blocks.query):
        raise UserError(f"analysis.queries: got {spec.queries}. Valid: 0 to {len(blocks.query) - 1}")
    settings = spec.model_copy(update={"per_token": False, "per_module": False})
    queries = blocks.query.rows(list(spec.queries))
    found = score_table(model, blocks, settings, directory, queries=queries)
    order = np.argsort(-found, axis=1, kind="stable")
    count = min(spec.top, found.shape[1])
    texts = [text_of(model, block) for block in blocks.train.tokens]
    asked = [text_of(model, block) for block in queries.tokens]
    chosen: dict[str, Any] = {"query": list(spec.queries)}
    ranks = {**chosen, "rank": count}
    top, bottom = order[:, :count], order[:, ::-1][:, :count]
    arrays = {
        "scores": NamedArray(found, {**chosen, "train": found.shape[1]}),
        "top": NamedArray(top, ranks),
        "bottom": NamedArray(bottom, ranks),
        "top_score": NamedArray(np.take_along_axis(found, top, 1), ranks),
        "bottom_score": NamedArray(np.take_along_axis(found, bottom, 1), ranks),
    }
    best = [texts[int(row[0])] for row in top]
    overlap, chance = _overlap(asked, best, texts)
    scalars = {
        "words_found": float(any(word in best[0] for word in spec.words)),
        "word_overlap": overlap,
        "word_overlap_chance": chance,
    }
    if directory is not None:
        report = _report(spec, asked, texts, found, top, bottom)
        write_atomic(directory / REPORT, report.encode())
    return Result(scalars, arrays, {"blocks": blocks.source, "report": REPORT})


def text_of(model: LanguageModel, tokens: Tensor) -> str:
    """A block as people read it; token ids where the model has no tokenizer."""
    if model.tokenizer is None:
        return " ".join(str(token) for token in tokens.tolist())
    return model.tokenizer.decode(tokens.tolist(), clean_up_tokenization_spaces=False)


def _overlap(asked: list[str], best: list[str], texts: list[str]) -> tuple[float, float]:
    """Shares of each query's rarer words: in its top block, and in a block on average."""
    words = [set(text.split()) for text in texts]
    shares, chance = [], []
    for query, text in zip(asked, best, strict=True):
        have = {word: sum(word in some for some in words) / len(words) for word in set(query.split())}
        rare = {word: share for word, share in have.items() if 0 < share <= 0.1}
        if rare:
            shares.append(len(rare.keys() & set(text.split())) / len(rare))
            chance.append(float(np.mean(list(rare.values()))))
    return (float(np.mean(shares)), float(np.mean(chance))) if shares else (float("nan"), float("nan"))


def _report(
    spec: TopSequences, asked: list[str], texts: list[str], found: np.ndarray, top: np.ndarray,
    bottom: np.ndarray,
) -> str:  # fmt: skip
    lines = [
        f"Influence ({spec.strategy}) of {found.shape[1]} training blocks. A positive score: more weight on",
        "the block lowers the loss of the query. Scores are sums over tokens and not normalised.",
    ]
    for row, query in enumerate(spec.queries):
        lines += ["", "=" * 100, f"QUERY {query}", "=" * 100, asked[row].strip()]
        for title, blocks in (("largest", top[row]), ("smallest", bottom[row])):
            for rank, block in enumerate(blocks):
                head = f"{title} {rank + 1}: training block {block}, score {found[row, block]:.6g}"
                lines += ["", f"--- {head} ---", texts[block].strip()]
    return "\n".join(lines) + "\n"
