"""Ranks and top tokens against sorting by hand; hidden states against the library's own."""

from __future__ import annotations

import pytest
import torch
from models.tiny_models import KINDS, tiny

from repro.data.token_batch import TokenBatch
from repro.interventions.lm_run import run
from repro.interventions.vocabulary_projection import Vocabulary, as_hidden, hidden_at, rank_of

BATCH = TokenBatch.of([[5, 9, 3, 17, 40], [8, 2, 33, 21, 4]])


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_are_those_of_the_library(kind: str) -> None:
    model = tiny(kind, dtype=torch.float64)
    places = [hidden_at(model, index) for index in range(model.depth + 1)]
    found = run(model, BATCH, reads=places, logits=None)
    with torch.no_grad():
        library = model.hf(BATCH.tokens, output_hidden_states=True).hidden_states
    assert len(library) == len(places)
    for index, place in enumerate(places):
        ours = as_hidden(model, found, place)
        if index == model.depth and model.project_out is not None:
            ours = model.project_out(ours)  # the library projects the last one, we do so when it is read
        torch.testing.assert_close(ours, library[index], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["gpt2", "gptj", "opt_post_norm"])
def test_reading_is_the_unembedding_without_norm_and_bias(kind: str) -> None:
    model = tiny(kind, dtype=torch.float64)
    vectors = torch.randn(7, model.width, dtype=torch.float64)
    answer = torch.tensor([3, 60, 0, 17, 17, 5, 9])
    streams = vectors if model.project_out is None else vectors @ model.project_out.weight.T  # type: ignore[operator]
    scores = streams @ model.hf.get_output_embeddings().weight.T
    order = scores.argsort(dim=-1, descending=True, stable=True)
    for block in (1, 61 * 3, 1 << 20):  # in blocks of one vector, of three, all at once
        ranks, top = Vocabulary(model, block).read(vectors, answer, top=4)
        assert ranks.tolist() == [row.index(int(a)) for row, a in zip(order.tolist(), answer, strict=True)]
        assert top.tolist() == order[:, :4].tolist()


def test_equal_scores_are_ranked_by_id_so_that_zeros_extract_nothing() -> None:
    assert rank_of(torch.zeros(2, 5), torch.tensor([[3], [0]])).tolist() == [[3], [0]]
    assert rank_of(torch.tensor([[1.0, 2.0, 2.0, 0.0]]), torch.tensor([[2, 1, 0]])).tolist() == [[1, 0, 2]]


def test_which_matrix_is_recorded() -> None:
    assert "also the unembedding" in Vocabulary(tiny("gpt2")).says
    assert "without its bias" in Vocabulary(tiny("gptj")).says


def test_half_precision_is_read_in_single() -> None:
    model = tiny("gpt2", dtype=torch.bfloat16)
    [(_, scores)] = Vocabulary(model).scores(torch.randn(3, model.width, dtype=torch.bfloat16))
    assert scores.dtype == torch.float32


@pytest.mark.parametrize("kind", ["gpt2", "opt_post_norm"])
def test_rows_of_e_as_vectors_of_the_stream_give_the_same_scores(kind: str) -> None:
    model = tiny(kind, dtype=torch.float64)
    vocabulary = Vocabulary(model)
    rows = vocabulary.stream_vectors(torch.tensor([4, 11]))
    assert rows.shape == (2, model.width)
    vectors = torch.randn(3, model.width, dtype=torch.float64)
    [(_, scores)] = vocabulary.scores(vectors)
    torch.testing.assert_close(vectors @ rows.T, scores[:, [4, 11]])
