"""Agreement of variants, texts of influential blocks, their tokens: by definition on a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from training import tuned_cases

from repro.analyses import score_agreement, tokenwise, top_sequences
from repro.analyses.influence.api import fit_factors, scores
from repro.analyses.influence_study_specs import ScoreAgreement, Tokenwise, TopSequences
from repro.analyses.tokenwise import page, strengths
from repro.data import corpus
from repro.errors import UserError
from repro.models.language_model import LanguageModel
from repro.shards import Part


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return tuned_cases.model(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def data(model: LanguageModel) -> Any:
    return corpus.load(model.origin.spec.text)


def table(model: LanguageModel, data: Any, spec: Any, **changes: Any) -> np.ndarray:
    """Scores straight from the core."""
    blocks, settings = data.blocks(model.tokenizer), spec.model_copy(update=changes)
    factors = fit_factors(model, blocks.train, settings)
    return scores(model, factors, blocks.query, blocks.train, settings).total.double().numpy()


def test_agreement_is_spearman_over_training_blocks(model: LanguageModel, data: Any) -> None:
    variants = {"a": {"strategy": "identity"}, "b": {"strategy": "diagonal"}}
    spec = ScoreAgreement.parse({"variants": variants, "reference": "a"}, "analysis")
    found = score_agreement.run(model, data, None, None, spec)
    identity, diagonal = (table(model, data, spec, strategy=name) for name in ("identity", "diagonal"))
    np.testing.assert_allclose(found.arrays["scores"].values, [identity, diagonal], rtol=1e-4, atol=1e-3)
    expected = [spearmanr(one, other)[0] for one, other in zip(identity, diagonal, strict=True)]
    np.testing.assert_allclose(found.arrays["agreement"].values[1], expected, atol=1e-2)
    assert found.scalars["agreement.a"] == pytest.approx(1)
    assert found.scalars["agreement.b"] == pytest.approx(float(found.arrays["agreement"].values[1].mean()))
    parts = [score_agreement.run_part(model, data, None, spec, Part(index, 2)) for index in range(2)]
    merged = score_agreement.merge(parts, spec).arrays["scores"]
    np.testing.assert_allclose(merged.values, found.arrays["scores"].values, rtol=1e-4, atol=1e-3)
    with pytest.raises(UserError, match=r"analysis.reference: got 'c'. Valid variants: a, b"):
        ScoreAgreement.parse({"variants": variants, "reference": "c"}, "analysis")


def test_the_report_has_the_texts_of_the_top_blocks(model: LanguageModel, data: Any, tmp_path: Path) -> None:
    spec = TopSequences.parse({"queries": [2, 0], "top": 2, "strategy": "identity"}, "analysis")
    found = top_sequences.run(model, data, None, tmp_path, spec)
    direct = table(model, data, spec)[[2, 0]]
    order = np.argsort(-direct, axis=1)
    assert found.arrays["top"].values.tolist() == order[:, :2].tolist()
    assert found.arrays["bottom"].values.tolist() == order[:, ::-1][:, :2].tolist()
    blocks, report = data.blocks(model.tokenizer), (tmp_path / "report.txt").read_text()
    for tokens in [*blocks.query.tokens[[2, 0]], *blocks.train.tokens[order[:, :2].ravel()]]:
        assert model.tokenizer.decode(tokens.tolist()).strip() in report
    assert f"largest 1: training block {order[0, 0]}, score {direct[0, order[0, 0]]:.3g}"[:40] in report
    word = model.tokenizer.decode(blocks.train.tokens[order[0, 0]].tolist()).split()[1]
    asked = spec.model_copy(update={"words": [word], "queries": [2]})
    assert top_sequences.run(model, data, None, None, asked).scalars["words_found"] == 1
    assert found.scalars["words_found"] == 0
    with pytest.raises(UserError, match="Valid: 0 to 3"):
        top_sequences.run(model, data, None, None, spec.model_copy(update={"queries": [4]}))


def test_tokens_sum_to_the_score_of_the_best_block(model: LanguageModel, data: Any, tmp_path: Path) -> None:
    spec = Tokenwise.parse({"query": 1, "strategy": "ekfac"}, "analysis")
    found = tokenwise.run(model, data, None, tmp_path, spec)
    direct = table(model, data, spec)[1]
    best, values = int(direct.argmax()), found.arrays["token_scores"].values
    assert found.scalars["block"] == best and found.scalars["last"] == 0 and len(values) == 16
    assert values.sum() == pytest.approx(direct[best], rel=1e-3)
    strength, shown = found.arrays["strength"].values, found.arrays["shown"].values
    assert np.array_equal(np.sign(strength), np.sign(values)) and np.abs(strength).max() == 1
    # A score belongs to the token that is predicted at its position.
    assert shown[0] == 0 and np.array_equal(shown[1:], strength[:-1])
    labels = found.arrays["shown"].axes["position"]
    text = model.tokenizer.decode(data.blocks(model.tokenizer).train.tokens[best].tolist())
    assert "".join(label.split(":", 1)[1] for label in labels) == text
    assert (tmp_path / "tokens.html").read_text().count("<span") == 16
    with pytest.raises(UserError, match="Valid: 0 to 3"):
        tokenwise.run(model, data, None, None, spec.model_copy(update={"query": 4}))


def test_colours_keep_the_sign_and_html_is_escaped() -> None:
    np.testing.assert_allclose(strengths(np.array([4.0, -1.0, 0.0]), 0.5), [1, -0.5, 0])
    assert strengths(np.zeros(2), 0.3).tolist() == [0, 0]
    made = page("a < b", "?", ["<x>", "y", "z"], np.array([1.0, -1.0, 0.0]))
    assert "<h1>a &lt; b</h1>" in made and 'rgb(255,0,0)">&lt;x&gt;' in made
    assert 'rgb(0,0,255)">y' in made and 'rgb(255,255,255)">z' in made
