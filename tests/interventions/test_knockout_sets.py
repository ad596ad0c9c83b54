"""Many knockouts at once against one full pass each, on tiny random models in float64."""

from __future__ import annotations

import pytest
import torch

from repro.data.token_batch import Side, TokenBatch
from repro.interventions.knockout_sets import KnockoutSets
from repro.interventions.lm_edits import At, Replace
from repro.interventions.lm_run import run
from repro.interventions.mean_ablation import head_masks, reference_means
from tests.models.tiny_models import exact, tiny

LENGTHS = (9, 7, 9, 8)
GROUPS = torch.tensor([3, 5, 3, 4])
END = torch.tensor([length - 1 for length in LENGTHS])
PLACES = {"END": END, "S2": torch.tensor([5, 4, 6, 5]), "S1": torch.tensor([2, 3, 1, 5])}
# S1 and S2 are one column in the last prompt.
CIRCUIT = [(0, 1, "S2"), (0, 1, "S1"), (1, 3, "S2"), (1, 0, "END"), (1, 3, "END")]
LATE = [(2, 2, "END"), (2, 0, "S2")]
SETS = [[], [(1, 0, "END")], [(0, 1, "S2")], [(0, 1, "S1"), (1, 3, "END")], [(1, 3, "S2"), (2, 2, "END")],
        CIRCUIT, [(2, 1, "S1"), (1, 3, "END")], [(0, 0, "S2")]]  # fmt: skip


def prompts(side: Side = "right", seed=0):
    rng = torch.Generator().manual_seed(seed)
    rows = [torch.randint(2, 61, (length,), generator=rng).tolist() for length in LENGTHS]
    return TokenBatch.of(rows, side=side)


def places(side):
    shift = torch.tensor([max(LENGTHS) - length for length in LENGTHS]) if side == "left" else 0
    return {name: at + shift for name, at in PLACES.items()}


def masks(model, batch, nodes, side="right"):
    where = places(side)
    return head_masks(model, batch, [(layer, head, where[name][:, None]) for layer, head, name in nodes])


def means_of(model, side: Side = "right"):
    batch = [prompts(side, seed) for seed in (1, 2)]
    together = TokenBatch(*(torch.cat([getattr(b, part) for b in batch]) for part in ("tokens", "mask")))
    return reference_means(model, together, GROUPS.repeat(2))


def by_definition(model, batch, means, gone, side):
    """One pass in which the ablated columns of every row and head are replaced on their own."""
    edits = []
    for layer in range(model.depth):
        mean = means.at("z", layer, batch, GROUPS)
        for row, head in gone[layer].any(1).nonzero().tolist():
            columns = gone[layer][row, :, head].nonzero().flatten().tolist()
            at = At("z", layer, heads=[head], positions=columns, rows=[row])
            edits.append(Replace(at, mean[row, columns, head][:, None]))
    final = At("resid_post", model.depth - 1, positions=places(side)["END"])
    return run(model, batch, edits, [final], logits=None)[final][:, 0]


def whole(model, batch, nodes, side):
    found = masks(model, batch, nodes, side)
    none = torch.zeros(*batch.tokens.shape, model.heads, dtype=torch.bool)
    return [found.get(("z", layer), none) for layer in range(model.depth)]


KINDS = ("gpt2", "gpt_neo", "gptj", "llama", "opt_post_norm")  # local, parallel, shared keys, norms behind


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("circuit", [None, CIRCUIT, CIRCUIT + LATE], ids=["model", "circuit", "late"])
def test_equals_one_pass_a_set(kind, circuit, monkeypatch):
    check(exact(kind, monkeypatch), circuit, "right")


# Eager Llama in float64 has NaN on padding: its softmax is float32, where the lowest float64 is -inf.
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("circuit", [None, CIRCUIT], ids=["model", "circuit"])
def test_padding_on_the_left(kind, circuit):
    check(tiny(kind, "sdpa", torch.float64), circuit, "left")


def check(model, circuit, side):
    batch = prompts(side)
    means = means_of(model, side)
    kept = None if circuit is None else masks(model, batch, circuit, side)
    sets = [masks(model, batch, nodes, side) for nodes in SETS]
    found = KnockoutSets(model, batch, GROUPS, places(side)["END"], means, kept).resid(sets)
    for nodes, resid in zip(SETS, found, strict=True):
        gone = whole(model, batch, nodes, side)
        if circuit is not None:
            live = whole(model, batch, circuit, side)
            gone = [out | ~here for out, here in zip(gone, live, strict=True)]
        expected = by_definition(model, batch, means, gone, side)
        scale = float(expected.abs().max())
        assert float((resid - expected).abs().max()) < 1e-9 * scale, nodes


def test_all_heads_everywhere_are_the_model_and_no_set_changes_nothing():
    model, batch = tiny("gpt2", dtype=torch.float64), prompts()
    means = means_of(model)
    everything = head_masks(model, batch, [(layer, "*", None) for layer in range(model.depth)])
    final = At("resid_post", model.depth - 1, positions=END)
    plain = run(model, batch, reads=[final], logits=None)[final][:, 0]
    for kept in (None, everything):
        subject = KnockoutSets(model, batch, GROUPS, END, means, kept)
        assert torch.equal(subject.untouched, plain)
        assert torch.equal(subject.resid([{}])[0], plain)
    full, circuit = (KnockoutSets(model, batch, GROUPS, END, means, kept) for kept in (None, everything))
    sets = [masks(model, batch, nodes) for nodes in SETS]
    torch.testing.assert_close(full.resid(sets), circuit.resid(sets), rtol=1e-9, atol=1e-9)


def test_neither_order_nor_company_of_sets_matters(monkeypatch):
    model, batch = tiny("llama", dtype=torch.float64), prompts()
    subject = KnockoutSets(model, batch, GROUPS, END, means_of(model), masks(model, batch, CIRCUIT + LATE))
    sets, seen = [masks(model, batch, nodes) for nodes in SETS], []
    found = subject.resid(sets, seen.append)
    assert sum(seen) == len(SETS)
    backwards = subject.resid(sets[::-1]).flip(0)
    monkeypatch.setattr("repro.interventions.knockout_sets.CPU_TOKENS", 1)
    alone = subject.resid(sets)
    for other in (backwards, alone):
        torch.testing.assert_close(other, found, rtol=1e-10, atol=1e-10)
    again = [masks(model, batch, nodes[::-1]) for nodes in SETS]
    assert torch.equal(subject.resid(again), alone)
