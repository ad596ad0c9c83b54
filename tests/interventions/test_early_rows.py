"""Rows put back to earlier states: the fast way equals a whole run with the rows replaced."""

from __future__ import annotations

import pytest
import torch
from models.tiny_models import KINDS, tiny

from repro.data.facts_records import Fact
from repro.data.facts_tokens import FactBatch, tokenise
from repro.interventions.early_rows import SETS, Clean, patched_outputs
from repro.interventions.lm_edits import At, Transform
from repro.interventions.lm_run import run

PROMPTS = [([5, 9, 3, 17, 40, 8], (1, 3)), ([8, 2, 33, 21], (0, 1)), ([7, 7, 4, 60, 31], (2, 4))]


def facts() -> FactBatch:
    rows = [Fact(i, "", tokens=tuple(ids), span=span) for i, (ids, span) in enumerate(PROMPTS)]
    return tokenise(rows, None, None, "offsets")


@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_a_run_with_the_rows_replaced(kind: str) -> None:
    model, asked, sources = tiny(kind, dtype=torch.float64), facts(), [0, 1, 2]
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
