"""Going on from a layer against whole passes, for every family; stacked variants against one pass each."""

from __future__ import annotations

import pytest
import torch
from models.tiny_models import EAGER_ONLY, KINDS, tiny

from repro.data.token_batch import TokenBatch
from repro.interventions.lm_edits import Add, At, Edit, patch, zero
from repro.interventions.lm_restart import Restart, overwrite
from repro.interventions.lm_run import run
from repro.models.language_model import LanguageModel

CASES = [
    (kind, way) for kind in KINDS for way in ("eager", "sdpa") if way == "eager" or kind not in EAGER_ONLY
]
ROWS = ([5, 9, 12, 30, 7, 8], [44, 3, 6, 2], [17, 18, 19, 20, 21, 22])


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def model(request: pytest.FixtureRequest) -> LanguageModel:
    kind, way = request.param
    return tiny(kind, way)


def batch(side: str = "right") -> TokenBatch:
    return TokenBatch.of(ROWS, side=side)  # type: ignore[arg-type]


def last_stream(model: LanguageModel, given: TokenBatch, edits: list[Edit]) -> torch.Tensor:
    read = At("resid_post", model.depth - 1)
    return run(model, given, edits, [read], logits=None)[read]


def close(one: torch.Tensor, other: torch.Tensor, given: TokenBatch) -> None:
    """Equal where tokens are real: what stands on padding is nobody's business."""
    torch.testing.assert_close(one[given.mask], other[given.mask], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
def test_going_on_from_any_layer_is_the_whole_pass(model: LanguageModel, side: str) -> None:
    given = batch(side)
    lasting = [zero(At("z", 0, heads=[1])), Add(At("mlp_out", 2), 0.5)]
    expected = last_stream(model, given, lasting)
    restart = Restart(model, given, lasting)
    for layer in range(model.depth):
        close(restart.go(layer), expected, given)
        stacked = restart.go(layer, copies=2)
        close(stacked[:3], expected, given)
        close(stacked[3:], expected, given)


def test_stacked_variants_are_patches_one_by_one(model: LanguageModel) -> None:
    given = batch()
    source = TokenBatch(given.tokens.flip(0), given.mask)
    here, there = torch.tensor([[1], [2], [3]]), torch.tensor([[2], [0], [3]])
    rows, every = torch.arange(3)[:, None], [(head, None, None) for head in range(model.kv_heads)]
    restart = Restart(model, given)
    for site, layer in (("z", 1), ("k", 2), ("resid_pre", 1), ("mlp_out", 0)):
        at = At(site, layer)
        found = run(model, source, reads=[at], logits=None)[at]
        heads = site in ("z", "k")
        variants = [*(every if heads else [(None, None, None)]), (1 if heads else None, here, there)]
        stacked = restart.go(layer, [overwrite(at, found, variants, 3)], copies=len(variants))
        for (head, columns, _), part in zip(variants, stacked.split(3), strict=True):
            kept = None if head is None else [head]
            value = found if head is None else found[:, :, [head]]
            value = value if columns is None else value[rows, there]
            edit = patch(At(site, layer, heads=kept, positions=columns), value)
            close(part, last_stream(model, given, [edit]), given)


def test_variants_of_patterns_change_one_head_and_query() -> None:
    model, given = tiny("gpt2", dtype=torch.float64), TokenBatch.of([ROWS[0], ROWS[2]])
    uniform = torch.full((2, 4, 6, 6), 1 / 6, dtype=torch.float64)
    at, where = At("pattern", 1), torch.tensor([[5], [5]])
    restart = Restart(model, given)
    part = restart.go(1, [overwrite(at, uniform, [(2, where, where)], 2)])
    edit = patch(At("pattern", 1, heads=[2], positions=[5]), uniform[:, [2]][:, :, [5]])
    torch.testing.assert_close(part, last_stream(model, given, [edit]), rtol=0, atol=1e-12)
    assert not torch.allclose(part, last_stream(model, given, []))
