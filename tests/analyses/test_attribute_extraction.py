"""Extraction against its definition prompt by prompt, statistics against counting by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from analyses.fact_cases import PROMPTS, token_facts
from analyses.splitting import assert_split_equals_whole
from models.tiny_models import KINDS, tiny

from repro.analyses import attribute_extraction as analysis
from repro.analyses import extraction_statistics as statistics
from repro.analyses.attribute_specs import AttributeExtraction
from repro.interventions.reweighting import ROWS
from repro.models.language_model import LanguageModel

FIRST_WITH_SUBJECT = [0, 1, 2, 0, 2]


def by_hand(model: LanguageModel, number: int) -> dict[str, list]:
    """One prompt through the library with hooks on its modules: ranks and top tokens by sorting."""
    tokens, (_, end) = PROMPTS[number]
    kept: dict[str, list[torch.Tensor]] = {"MHSA": [], "MLP": []}
    handles = []
    for layer in model.layers:
        for name, module in (("MHSA", layer.attention), ("MLP", layer.down)):

            def keep(module, args, output, name=name) -> None:
                output = output[0] if isinstance(output, tuple) else output
                kept[name].append(output.reshape(len(tokens), -1)[-1])

            handles.append(module.register_forward_hook(keep))
    with torch.no_grad():
        out = model.hf(torch.tensor([tokens]), output_hidden_states=True)
    for handle in handles:
        handle.remove()
    answer = int(out.logits[0, -1].argmax())
    first = FIRST_WITH_SUBJECT[number]
    ids, (_, subject_end) = PROMPTS[first]
    with torch.no_grad():
        states = model.hf(torch.tensor([ids]), output_hidden_states=True).hidden_states
    matrix = model.hf.get_output_embeddings().weight
    vectors = [*kept["MHSA"], *kept["MLP"]]
    if model.project_out is not None:
        vectors = [model.project_out(v) for v in vectors]
    inner = [s[0, subject_end - 1] for s in states[1:]]
    if model.project_out is not None:  # the library projects the last state itself
        inner = [*(model.project_out(v) for v in inner[:-1]), inner[-1]]
    orders = [(matrix @ v).argsort(descending=True).tolist() for v in [*vectors, *inner]]
    return {"answer": [answer], "rank": [o.index(answer) for o in orders], "top": [o[:4] for o in orders]}


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_and_tops_are_those_of_sorting_prompt_by_prompt(kind: str) -> None:
    model = tiny(kind, dtype=torch.float64)
    spec = AttributeExtraction(top=4, batch=2)
    arrays = analysis.run(model, token_facts(), None, None, spec).arrays
    for number in range(len(PROMPTS)):
        hand = by_hand(model, number)
        assert [arrays["answer"].values[number]] == hand["answer"]
        assert arrays["rank"].values[number].ravel().tolist() == hand["rank"]
        tops = arrays["top_tokens"].values[number].transpose(1, 0, 2).reshape(-1, 4)  # sublayer, then layer
        assert tops.tolist() == hand["top"][: 2 * model.depth]


@pytest.mark.parametrize("kind", ["gpt2", "gptj", "llama"])
def test_all_columns_are_attention_and_none_is_its_bias(kind: str) -> None:
    model = tiny(kind, dtype=torch.float64)
    result = analysis.run(model, token_facts(), None, None, AttributeExtraction())
    event, blocked = result.arrays["event"].values[:, 0], result.arrays["knockout_event"]
    for way in ("released", "renormalised"):
        np.testing.assert_array_equal(blocked.select(reweight=way, row="MHSA*").values, event)
        nothing = blocked.select(reweight=way, row="all").values
        for layer in model.layers:
            bias = (
                torch.zeros(model.width, dtype=torch.float64)
                if layer.output_bias is None
                else layer.output_bias
            )
            named = int((model.unembedding @ bias).argmax()) if bias.any() else 0
            expected = result.arrays["answer"].values == named
            np.testing.assert_array_equal(nothing[:, layer.index], expected)
    assert result.scalars["rate.MHSA"] == result.scalars["rate.MHSA-again"]


def test_no_number_depends_on_batches_and_parts_give_the_whole(tmp_path: Path) -> None:
    model, data = tiny("gpt2", dtype=torch.float64), token_facts()
    one, all_ = (analysis.run(model, data, None, None, AttributeExtraction(batch=b)) for b in (1, 5))
    for name in one.arrays:
        if one.arrays[name].values.dtype.kind != "U":
            np.testing.assert_allclose(
                one.arrays[name].values, all_.arrays[name].values, rtol=1e-9, err_msg=name
            )
    assert_split_equals_whole(analysis, model, data, AttributeExtraction(batch=1), 5, tmp_path, (1, 2, 5))


def test_own_and_first_prompt_of_a_subject_differ_only_where_it_returns() -> None:
    model = tiny("gpt2", dtype=torch.float64)
    first, own = (
        analysis.run(
            model, token_facts(), None, None, AttributeExtraction(subject_prompt=which, knockouts=False)
        )
        for which in ("first", "own")
    )
    ranks = [result.arrays["rank"].values[:, 2] for result in (first, own)]
    np.testing.assert_array_equal(ranks[0][:4], ranks[1][:4])  # prompt 3 is prompt 0 again
    assert (ranks[0][4] != ranks[1][4]).any()
    assert "knockout_event" not in first.arrays and "rate.subject" not in first.scalars


def test_statistics_count_texts_once() -> None:
    event = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=bool)
    group = np.array([0, 1, 2, 0])  # the last prompt is the first again
    found = statistics.statistics(event, group)
    assert found == {"rate": pytest.approx(200 / 3), "layers": pytest.approx(4 / 3), "layers_if_any": 2.0}
    assert statistics.rate(event, group) == found["rate"]
    mlp = np.array([[0, 1, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]], dtype=bool)
    order = statistics.order(event, mlp, group)
    # Text 0: attention in layer 0, MLP in 1; text 1: MLP only; text 2: MLP first.
    assert [order[f"share.{name}"] for name in ("both", "MHSA_only", "MLP_only", "neither")] == pytest.approx(
        [200 / 3, 0, 100 / 3, 0]
    )
    assert order["MHSA_not_after_MLP"] == 50.0


def test_extraction_by_construction() -> None:
    """An output bias along the answer's row of E, far larger than all else: every layer extracts it."""
    model = tiny("gpt2", dtype=torch.float64)
    result = analysis.run(model, token_facts(), None, None, AttributeExtraction(knockouts=False))
    answer = int(result.arrays["answer"].values[0])
    with torch.no_grad():
        row = model.unembedding[answer]
        for layer in model.layers:
            layer.out.bias.copy_(1e4 * row)  # type: ignore[union-attr,operator]
            layer.down.weight.zero_()  # type: ignore[union-attr,operator]
            layer.down.bias.zero_()  # type: ignore[union-attr,operator]
    result = analysis.run(model, token_facts(), None, None, AttributeExtraction())
    assert set(result.arrays["answer"].values.tolist()) == {answer}
    assert result.scalars["rate.MHSA"] == 100 and result.scalars["layers.all"] == pytest.approx(3 * 5 / 4)
    # The MLP writes nothing, whose first token is token 0.
    assert result.scalars["rate.MLP"] == (100 if answer == 0 else 0)
    for row in ROWS[1:]:
        assert result.scalars[f"rate.{row}"] == result.scalars[f"renormalised.rate.{row}"] == 100
    assert result.arrays["event_rate"].select(sublayer="MHSA").values.tolist() == [100] * 3
