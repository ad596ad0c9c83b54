"""Rows put back to earlier states: the fast way equals a whole run with the rows replaced."""

from __future__ import annotations

import pytest
import torch
from models.tiny_models import KINDS, exact, tiny

from repro.data.facts_records import Fact
from repro.data.facts_tokens import FactBatch, tokenise
from repro.interventions import early_rows
from repro.interventions.early_rows import SETS, Clean, patched_outputs
from repro.interventions.lm_edits import At, Transform
from repro.interventions.lm_run import run

PROMPTS = [([5, 9, 3, 17, 40, 8], (1, 3)), ([8, 2, 33, 21], (0, 1)), ([7, 7, 4, 60, 31], (2, 4))]


def facts() -> FactBatch:
    rows = [Fact(i, "", tokens=tuple(ids), span=span) for i, (ids, span) in enumerate(PROMPTS)]
    return tokenise(rows, None, None, "offsets")


@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_a_run_with_the_rows_replaced(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked, sources = exact(kind, monkeypatch), facts(), [0, 1, 2]
    reads = Clean.of(model, asked)
    places = reads.hidden
    clean = run(model, asked.batch, reads=reads.reads, logits=None)
    for layer in model.layers:
        found = patched_outputs(layer, clean, reads, asked, sources)
        read = At("attn_out", layer.index, positions=asked.end)
        slow = [run(model, asked.batch, reads=[read], logits=None)[read][:, 0]]
        for source in sources:
            for name in SETS:
                where = asked.positions(name)[..., None]
                early = clean[places[source]]
                edit = Transform(places[layer.index], lambda x, w=where, e=early: torch.where(w, e, x))
                slow.append(run(model, asked.batch, [edit], [read], logits=None)[read][:, 0])
        # The library's softmax of some families is float32, whatever the dtype.
        close = 1e-6 if layer.upcasts_softmax else 1e-9
        torch.testing.assert_close(found, torch.stack(slow), rtol=close, atol=close)
        for at, source in enumerate(sources):
            same = torch.allclose(
                found[0].expand(len(SETS), -1, -1), found[1 + 3 * at : 4 + 3 * at], 1e-9, 1e-9
            )
            assert same == (source == layer.index)  # putting a row back to itself changes nothing


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_rows_are_those_of_their_keys(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries turned back and sent through W_K meet rows as queries meet keys."""
    model, asked = exact(kind, monkeypatch), facts()
    ids = asked.batch.position_ids
    x = torch.randn(2, *ids.shape, model.width, dtype=torch.float64, generator=torch.manual_seed(1))
    for layer in model.layers:
        q = layer.project(x[0, :, -1:], ids[:, -1:])[0]
        expected = torch.stack([layer.scores(q, layer.keys(one, ids))[..., 0, :] for one in x], 2)
        torch.testing.assert_close(
            early_rows._scores_of_keys(layer, q, x, ids), expected, rtol=1e-12, atol=1e-12
        )
        assert (layer.key_map() is None) == (kind == "qwen3")


def test_half_precision_rounds_as_the_model_does() -> None:
    model, asked = tiny("gpt2", dtype=torch.bfloat16), facts()
    ids = asked.batch.position_ids
    x = torch.randn(2, *ids.shape, model.width, generator=torch.manual_seed(1)).bfloat16()
    for layer in model.layers:
        q = layer.project(x[0, :, -1:], ids[:, -1:])[0]
        expected = torch.stack([layer.scores(q, layer.keys(one, ids))[..., 0, :] for one in x], 2)
        assert torch.equal(early_rows._scores_of_keys(layer, q, x, ids), expected)
