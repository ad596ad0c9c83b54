"""Copying: the released definition in plain loops over the whole vocabulary, known answers, and shards."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from analyses.splitting import assert_split_equals_whole
from models.tiny_models import KINDS, tiny

from repro.analyses import copying
from repro.analyses.copying import copying_score
from repro.analyses.induction_specs import Copying, CopyingOptions
from repro.data.token_sequences import Given, TokenSequence
from repro.errors import UserError

PRE_NORM = [kind for kind in KINDS if kind != "opt_post_norm"]


def data() -> Given:
    rng = np.random.RandomState(5)
    rows = [(0, *map(int, 2 + rng.permutation(50)[:length])) for length in (4, 7, 9)]
    return Given(tuple(TokenSequence(row, 1) for row in rows), "test", "")


def run(model: Any, given: Given, **options: Any) -> np.ndarray:
    spec = Copying(copying=CopyingOptions(**options))
    return copying.run(model, given, None, None, spec).arrays["per_sequence"].values


def definition(probabilities: np.ndarray, pattern: np.ndarray, ids: list[int]) -> float:
    """The sheet's sum for one head. probabilities [T, V] of what is written; pattern [T, T]."""
    terms = []
    for j in range(1, len(ids)):
        a = [probabilities[j, ids[i]] for i in range(j + 1)]
        mean = sum(a) / len(a)
        r = [max(one - mean, 0.0) for one in a]
        most = max(range(j + 1), key=lambda i: pattern[j, i])
        terms.append(r[most] / sum(r) if sum(r) > 0 else 0.0)
    return sum(terms) / len(terms)


def opt_by_hand(model: Any, ids: list[int]) -> np.ndarray:
    """[layer, head] for OPT from its modules alone: released code in words, in float64."""
    decoder, tokens = model.hf.model.decoder, torch.tensor([ids])
    x = decoder.embed_tokens(tokens) + decoder.embed_positions.weight[2 : 2 + len(ids)]
    scores = np.zeros((len(decoder.layers), model.heads))
    for number, block in enumerate(decoder.layers):
        attention, width = block.self_attn, model.head_width
        normed = block.self_attn_layer_norm(x)[0]
        query, key, value = (
            getattr(attention, f"{name}_proj")(normed).view(len(ids), model.heads, width) for name in "qkv"
        )
        for head in range(model.heads):
            logits = (query[:, head] * width**-0.5) @ key[:, head].T
            logits = logits.masked_fill(~torch.ones(len(ids), len(ids)).tril().bool(), -torch.inf)
            pattern = torch.softmax(logits, -1).numpy()
            columns = slice(head * width, (head + 1) * width)
            written = value[:, head] @ attention.out_proj.weight[:, columns].T + attention.out_proj.bias
            probabilities = torch.softmax(written @ decoder.embed_tokens.weight.T, -1).numpy()
            scores[number, head] = definition(probabilities, pattern, ids)
    return scores


def _keep(kept: list[torch.Tensor], module: Any, args: tuple[torch.Tensor, ...]) -> None:
    kept.append(args[0])


@torch.no_grad()
def test_opt_equals_the_definition_over_the_whole_vocabulary() -> None:
    model, given = tiny("opt", dtype=torch.float64), data()
    found = run(model, given)
    for number, one in enumerate(given.sequences):
        np.testing.assert_allclose(found[number], opt_by_hand(model, list(one.tokens)), atol=1e-12)
    assert 0 < found.min() + found.max() and found.max() <= 1


@torch.no_grad()
@pytest.mark.parametrize("kind", PRE_NORM)
def test_the_mixed_output_of_the_first_layer_is_what_the_library_computes(kind: str) -> None:
    """The first layer's own input is the embedding, so a normal pass has its pattern and its head outputs."""
    model, given = tiny(kind, dtype=torch.float64), data()
    found, layer = run(model, given, source="attention_output"), model.layers[0]
    for number, one in enumerate(given.sequences):
        kept: list[torch.Tensor] = []
        hook = layer.out.register_forward_pre_hook(partial(_keep, kept))
        attention = model.hf(
            input_ids=torch.tensor([one.tokens]), output_attentions=True, use_cache=False
        ).attentions[0]
        hook.remove()
        bias = layer.output_bias if layer.output_bias is not None else 0.0
        for head in range(model.heads):
            alone = torch.zeros_like(kept[0][0])
            columns = slice(head * model.head_width, (head + 1) * model.head_width)
            alone[:, columns] = kept[0][0][:, columns]
            written = layer.out(alone) if layer.output_bias is not None else layer.out(alone) + bias
            probabilities = torch.softmax(model.head(written), -1).numpy()
            expected = definition(probabilities, attention[0, head].numpy(), list(one.tokens))
            assert found[number, 0, head] == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("kind", PRE_NORM)
def test_every_layer_is_asked_as_if_it_were_the_first(kind: str) -> None:
    """Weights of layer 0 put in the place of another layer give that layer the scores of layer 0."""
    model, given = tiny(kind, dtype=torch.float64), data()
    if kind == "gpt_neo":  # the same kind of attention: 0 and 2 are local
        source, target = 0, 2
    else:
        source, target = 0, 1
    model.layers[target].block.load_state_dict(model.layers[source].block.state_dict())
    for options in ({}, {"source": "attention_output"}):
        found = run(model, given, **options)
        np.testing.assert_allclose(found[:, target], found[:, source], atol=1e-12)


def test_known_scores() -> None:
    """Four tokens. A head that writes what it attends to scores 1, one that writes the opposite 0."""
    length = 4
    before = torch.zeros(1, length, length)
    for query in range(length):
        before[0, query, max(query - 1, 0)] = 1.0
    raises = torch.where(before > 0, 5.0, 0.0)
    assert float(copying_score(raises, before)) == 1.0
    assert float(copying_score(-raises, before)) == 0.0
    assert float(copying_score(torch.zeros_like(raises), before)) == 0.0, "nothing is raised"
    # Adding a number to all logits of a row changes nothing: the softmax does not see it.
    shifted = raises + torch.tensor([100.0, -300.0, 7.0, 50.0])[:, None]
    assert float(copying_score(shifted, before)) == 1.0


def test_scores_of_olsson_are_stretched() -> None:
    model, given = tiny("opt"), data()
    np.testing.assert_allclose(run(model, given, scale="signed"), 2 * run(model, given) - 1)


def test_shards_over_sequences_equal_the_whole(tmp_path: Path) -> None:
    assert_split_equals_whole(copying, tiny("opt"), data(), Copying(), 3, tmp_path, counts=(2, 3))


def test_models_that_end_with_their_norm_are_refused() -> None:
    with pytest.raises(UserError, match="OPT-350M"):
        run(tiny("opt_post_norm"), data())
