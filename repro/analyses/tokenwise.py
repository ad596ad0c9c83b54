"""Which tokens of a training block the influence on a query comes from.

Source: Grosse et al. 2023, section 3.3, and the tokenwise view of kronfluence's examples/wikitext.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from repro.analyses import lm_inputs as lm
from repro.analyses.influence.api import fit_factors, scores
from repro.analyses.influence_scores import blocks_of, factors_folder
from repro.analyses.influence_study_specs import Tokenwise
from repro.errors import UserError
from repro.models.language_model import LanguageModel
from repro.results import NamedArray, Result, write_atomic

PAGE = "tokens.html"


def run(subject: Any, data: Any, record: Any, directory: Path | None, spec: Tokenwise) -> Result:
    """Scores of the positions of the training block with the largest score for one query.

    A score at a position is that of predicting the next token there, so it is shown on the token that is
    predicted. Arrays: scores [train]; token_scores [position], with the sign, of the position before each
    token; tokens [position], ids; strength [position], sign times share of the largest to the power. Scalars:
    block, score, predicted_share (of positive scores in the sum of absolute ones), last (0 by definition).
    tokens.html shows the text.
    """
    model = lm.model_of(subject)
    blocks = blocks_of(model, data)
    if spec.query >= len(blocks.query):
        raise UserError(f"analysis.query: got {spec.query}. Valid: 0 to {len(blocks.query) - 1}")
    settings = spec.model_copy(update={"per_token": False, "per_module": False, "sum_queries": False})
    query = blocks.query.rows([spec.query])
    factors = fit_factors(model, blocks.train, settings, factors_folder(directory))
    total = scores(model, factors, query, blocks.train, settings).total[0].double().numpy()
    best = int(total.argmax())
    each = settings.model_copy(update={"per_token": True})
    found = scores(model, factors, query, blocks.train.rows([best]), each).per_token
    assert found is not None
    by_position = found[0, 0].double().numpy()
    strength = strengths(by_position, spec.power)
    pieces = pieces_of(model, blocks.train.tokens[best])
    # What is learned at a position is the next token.
    shown = np.concatenate([[0.0], strength[:-1]])
    labels: dict[str, Any] = {"position": [f"{number}:{piece}" for number, piece in enumerate(pieces)]}
    arrays = {
        "scores": NamedArray(total, {"train": len(total)}),
        "token_scores": NamedArray(by_position, labels),
        "strength": NamedArray(strength, labels),
        "shown": NamedArray(shown, labels),
        "tokens": NamedArray(blocks.train.tokens[best].numpy(), labels),
    }
    scalars = {
        "block": float(best), "score": float(total[best]), "last": float(by_position[-1]),
        "positive_share": float(by_position.clip(0).sum() / max(np.abs(by_position).sum(), 1e-300)),
    }  # fmt: skip
    if directory is not None:
        asked = "".join(pieces_of(model, blocks.query.tokens[spec.query]))
        title = f"Query {spec.query}, training block {best}, score {total[best]:.6g} ({spec.strategy})"
        write_atomic(directory / PAGE, page(title, asked, pieces, shown).encode())
    return Result(scalars, arrays, {"blocks": blocks.source, "page": PAGE})


def strengths(values: np.ndarray, power: float) -> np.ndarray:
    """Sign times (share of the largest absolute value) to the power; 0 where all are 0."""
    largest = np.abs(values).max()
    return np.sign(values) * (np.abs(values) / largest) ** power if largest > 0 else np.zeros_like(values)


def pieces_of(model: LanguageModel, tokens: Tensor) -> list[str]:
    """Every token's text, spaces kept; its id where the model has no tokenizer."""
    if model.tokenizer is None:
        return [f" {token}" for token in tokens.tolist()]
    return [model.tokenizer.decode([token], clean_up_tokenization_spaces=False) for token in tokens.tolist()]


def page(title: str, asked: str, pieces: Sequence[str], strength: np.ndarray) -> str:
    """The text as a web page: red tokens lower the query's loss, blue ones raise it."""
    spans = "".join(
        f'<span title="{value:+.2f}" style="background:{_colour(value)}">{html.escape(piece)}</span>'
        for piece, value in zip(pieces, strength, strict=True)
    )
    style = "body{font:16px/1.7 Georgia,serif;max-width:50em;margin:2em auto}p{white-space:pre-wrap}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{style}</style><h1>{html.escape(title)}</h1><h2>Query</h2><p>{html.escape(asked)}</p>"
        "<h2>Training block</h2><p>Red: predicting this token better lowers the query's loss. Blue: it raises"
        f" it.</p><p>{spans}</p></html>\n"
    )


def _colour(value: float) -> str:
    rest = round(255 * (1 - abs(value)))
    return f"rgb(255,{rest},{rest})" if value > 0 else f"rgb({rest},{rest},255)"
