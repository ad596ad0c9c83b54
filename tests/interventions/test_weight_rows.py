"""Rows of W_VO and W_QK against whole V x V matrices of a tiny vocabulary, made of the library's weights."""

from __future__ import annotations

import pytest
import torch
from models.tiny_models import KINDS, tiny

from repro.interventions.vocabulary_projection import Vocabulary
from repro.interventions.weight_rows import looked_for, values, written
from repro.models.language_model import LanguageModel


def weights(model: LanguageModel, layer: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """W_Q, W_K, W_V as [d, heads, D], sliced as each family stores them."""
    inner, d, heads = model.layers[layer].attention, model.width, model.heads
    if model.family == "gpt2":
        parts = inner.c_attn.weight.split(d, dim=1)
    elif model.family == "gpt_neox":
        fused = inner.query_key_value.weight.view(heads, 3, -1, d)
        parts = [fused[:, i].reshape(-1, d).T for i in range(3)]
    else:
        parts = [getattr(inner, f"{name}_proj").weight.T for name in "qkv"]
    q, k, v = (part.unflatten(1, (-1, model.head_width)) for part in parts)
    return q, k, v


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_the_whole_matrix(kind: str) -> None:
    model = tiny(kind, dtype=torch.float64)
    vocabulary = Vocabulary(model)
    matrix = model.unembedding
    if model.project_out is not None:
        matrix = matrix @ model.project_out.weight  # type: ignore[operator]
    layer, some = model.layers[1], torch.tensor([0, 7, 60])
    q, k, v = weights(model, 1)
    scale = layer.attention.scaling if model.family == "opt" else 1.0  # in the queries there
    rows = vocabulary.stream_vectors(some)
    [(_, writes)] = vocabulary.scores(written(layer, rows).flatten(0, 1))
    [(_, looks)] = vocabulary.scores(looked_for(layer, rows).flatten(0, 1))
    for head in range(model.heads):
        shared = head * model.kv_heads // model.heads
        vo = matrix @ (v[:, shared] @ layer.output_matrix[head]) @ matrix.T
        qk = matrix @ (q[:, head] @ k[:, shared].T) @ matrix.T
        assert vo.shape == (61, 61)
        got = writes.unflatten(0, (3, -1))[:, head]
        torch.testing.assert_close(got, vo[some], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(
            looks.unflatten(0, (3, -1))[:, head], scale * qk[some], rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_what_single_units_write(kind: str) -> None:
    model = tiny(kind, dtype=torch.float64)
    layer = model.layers[2]
    units = torch.eye(model.mlp_width, dtype=torch.float64)
    with torch.no_grad():
        alone = layer.down(units) - layer.down(torch.zeros_like(units))
    torch.testing.assert_close(values(layer), alone, rtol=1e-9, atol=1e-9)
