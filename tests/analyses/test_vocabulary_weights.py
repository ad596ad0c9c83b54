"""Head mappings against the whole vocabulary matrix, by construction, and in parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from analyses.fact_cases import PROMPTS, token_facts
from analyses.splitting import assert_split_equals_whole
from models.tiny_models import tiny

from repro.analyses import vocabulary_weights as analysis
from repro.analyses.attribute_specs import VocabularyWeights
from repro.errors import UserError
from repro.interventions.weight_rows import values
from repro.models.language_model import LanguageModel

SPEC = VocabularyWeights(cuts=[1, 5, 10], units=3, examples=2, top=4, batch=2)


def extracting(kind: str) -> tuple[LanguageModel, int]:
    """A model whose layer 1 attention always names one answer, by its output bias or its weights."""
    model = tiny(kind, dtype=torch.float64)
    answer = 17
    with torch.no_grad():
        row = model.unembedding[answer]
        model.layers[1].out.bias.copy_(1e3 * row)  # type: ignore[union-attr,operator]
        model.layers[2].down.bias.copy_(1e5 * row)  # type: ignore[union-attr,operator]
    return model, answer


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox"])
def test_ranks_are_those_of_the_whole_matrix_where_attention_extracts(kind: str) -> None:
    model, answer = extracting(kind)
    result = analysis.run(model, token_facts(), None, None, SPEC)
    assert set(result.arrays["answer"].values.tolist()) == {answer}
    ranks = result.arrays["head_rank"].values
    assert (ranks[:, 1] >= 0).all()
    layer, matrix = model.layers[1], model.unembedding
    identity = torch.eye(model.width, dtype=torch.float64)[None]
    at = torch.zeros(1, model.width, dtype=torch.long)
    with torch.no_grad():
        value = (layer.project(identity, at)[2] - layer.project(0 * identity, at)[2])[0]  # [d, H, D]
    for head in range(model.heads):
        whole = matrix @ value[:, head] @ layer.output_matrix[head] @ matrix.T
        for number, (tokens, (_, end)) in enumerate(PROMPTS):
            order = whole[tokens[end - 1]].argsort(descending=True).tolist()
            assert ranks[number, 1, head] == order.index(answer)
    cases = ranks[ranks[..., 0] >= 0].min(-1)
    assert result.scalars["cases"] == len(cases)
    for cut in (1, 5, 10):
        assert result.scalars[f"mapped.{cut}"] == pytest.approx(100 * (cases < cut).mean())
    assert result.scalars["mapped"] == result.scalars["mapped.10"]
    by_chance = result.arrays["mapped_by_chance"].select(cut=5).values
    assert float(by_chance) == pytest.approx(100 * (1 - (56 / 61) ** 4))
    assert result.arrays["head_cases"].values.sum() == ((ranks >= 0) & (ranks < 10)).sum()


def test_a_head_that_maps_subjects_to_the_answer_is_found() -> None:
    """W_VO of head 1.2 sends every subject token to the answer's row of E; the other heads write nothing."""
    model, answer = extracting("gpt2")
    layer, width = model.layers[1], model.head_width
    subjects = sorted({tokens[end - 1] for tokens, (_, end) in PROMPTS})
    with torch.no_grad():
        layer.attention.c_attn.weight[:, 2 * model.width :] = 0
        layer.out.weight.zero_()  # type: ignore[union-attr,operator]
        along = torch.linalg.pinv(model.unembedding[subjects]).sum(1)  # 1 for every subject token
        layer.attention.c_attn.weight[:, 2 * model.width + 2 * width] = along
        layer.out.weight[2 * width] = model.unembedding[answer] * 10  # type: ignore[index]
    result = analysis.run(model, token_facts(), None, None, SPEC)
    ranks = result.arrays["head_rank"].values[:, 1]
    winner = int((model.unembedding @ model.unembedding[answer]).argmax())
    assert winner == answer  # else the construction does not say what it should
    assert (ranks[:, 2] == 0).all()
    assert (ranks[:, [0, 1, 3]] == answer).all()  # zeros rank tokens by id
    assert result.arrays["head_cases"].values[1].tolist() == [0, 0, len(PROMPTS), 0]


def test_units_and_words(tmp_path: Path) -> None:
    model = tiny("gpt2", dtype=torch.float64)
    spec = SPEC.model_copy(update={"words": [7, 60], "heads": ["0.1", "2.3"]})
    arrays = analysis.run(model, token_facts(), None, None, spec).arrays
    assert arrays["writes_words"].axes == {"word": ["7", "60"], "head": ["0.1", "2.3"], "rank": 4}
    assert arrays["looks_for_words"].values.shape == (2, 2, 4)
    tokens, (_, end) = PROMPTS[0]
    kept: list[torch.Tensor] = []
    handles = [
        layer.down.register_forward_pre_hook(lambda module, args: kept.append(args[0][0, end - 1]))
        for layer in model.layers
    ]
    with torch.no_grad():
        model.hf(torch.tensor([tokens]))
    for handle in handles:
        handle.remove()
    norms = [values(layer).norm(dim=1) for layer in model.layers]
    size = torch.stack([entered.abs() * norm for entered, norm in zip(kept, norms, strict=True)])
    order = size.flatten().argsort(descending=True)[:3].tolist()
    found = arrays["unit_layer"].values[0] * model.mlp_width + arrays["unit_index"].values[0]
    assert found.tolist() == order
    layer, unit = divmod(order[0], model.mlp_width)
    top = (model.unembedding @ model.layers[layer].down.weight[unit]).topk(4).indices  # type: ignore[index]
    assert arrays["unit_words"].values[0, 0].tolist() == [str(i) for i in top.tolist()]
    assert (arrays["unit_layer"].values[2:] == -1).all()
    alone = spec.model_copy(update={"batch": 1})
    assert_split_equals_whole(analysis, model, token_facts(), alone, 5, tmp_path, (2, 5))
    np.testing.assert_array_equal(
        analysis.run(model, token_facts(), None, None, alone).arrays["head_rank"].values,
        arrays["head_rank"].values,
    )


def test_words_that_are_no_token_are_refused() -> None:
    with pytest.raises(UserError, match="token id from 0 to 60"):
        analysis.run(tiny("gpt2"), token_facts(), None, None, VocabularyWeights(words=[61]))
    with pytest.raises(UserError, match="none of cuts|is none of"):
        VocabularyWeights.parse({"cut": 3}, "analysis")
