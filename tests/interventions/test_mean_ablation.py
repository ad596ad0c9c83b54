"""Means by template and position against loops; knockouts and direct effects against their definitions."""

from __future__ import annotations

import pytest
import torch
from analyses.lm_cases import padded_left, pairs
from models.tiny_models import tiny

from repro.errors import UserError
from repro.interventions.direct_effects import direct_effects
from repro.interventions.lm_edits import At, Read, Replace
from repro.interventions.lm_run import run
from repro.interventions.mean_ablation import (
    head_masks,
    knock_out,
    outside,
    reference_means,
    zero_means,
)

DATA = pairs((8, 8, 6, 8, 6))


@pytest.fixture(scope="module")
def model():
    return tiny("gpt2", dtype=torch.float64)


def logits(model, batch, edits):
    """At every real token, row after row."""
    found = run(model, batch, edits).logits
    assert found is not None
    return found[batch.mask]


def test_means_are_taken_by_template_and_position_and_ignore_padding(model):
    means = reference_means(model, DATA.corrupt, DATA.groups, rows=2)
    other = reference_means(model, padded_left(DATA).corrupt, DATA.groups)
    assert means.groups.tolist() == [3, 7]
    assert means.counts.tolist() == [[2] * 6 + [0] * 2, [3] * 8]
    for site in ("z", "mlp_out"):
        value = run(model, DATA.corrupt, reads=[At(site, 1)], logits=None)[site, 1]
        short, long = value[[2, 4], :6].mean(0), value[[0, 1, 3]].mean(0)
        torch.testing.assert_close(means.values[site, 1][0, :6], short, rtol=0, atol=1e-12)
        torch.testing.assert_close(means.values[site, 1][1], long, rtol=0, atol=1e-12)
        torch.testing.assert_close(other.values[site, 1], means.values[site, 1], rtol=0, atol=1e-12)
        placed = means.at(site, 1, DATA.clean, DATA.groups)
        torch.testing.assert_close(placed[0], long, rtol=0, atol=1e-12)
        torch.testing.assert_close(placed[2, :6], short, rtol=0, atol=1e-12)
        left = means.at(site, 1, padded_left(DATA).clean, DATA.groups)
        torch.testing.assert_close(left[2, 2:], short, rtol=0, atol=1e-12)


def test_knocked_out_places_get_their_mean_and_others_nothing(model):
    means = reference_means(model, DATA.corrupt, DATA.groups)
    end = DATA.positions["END"]
    masks = head_masks(model, DATA.clean, [(1, 2, end[:, None]), (1, 0, None), (2, None, end[:, None])])
    edits = knock_out(means, DATA.clean, DATA.groups, masks)
    mean_z, mean_mlp = (means.at(*place, DATA.clean, DATA.groups) for place in (("z", 1), ("mlp_out", 2)))
    rows = torch.arange(5)
    by_hand = [
        Replace(At("z", 1, heads=[2], positions=end), mean_z[rows, end, 2][:, None, None]),
        Replace(At("z", 1, heads=[0]), mean_z[:, :, [0]]),
        Replace(At("mlp_out", 2, positions=end), mean_mlp[rows, end][:, None]),
    ]
    expected = logits(model, DATA.clean, by_hand)
    torch.testing.assert_close(logits(model, DATA.clean, edits), expected, rtol=0, atol=1e-12)
    assert not torch.allclose(expected, logits(model, DATA.clean, []))


def test_keeping_all_heads_knocks_out_nothing_and_keeping_none_knocks_out_all(model):
    means = zero_means(model, DATA.groups, 8)
    everything = [(layer, "*", None) for layer in range(model.depth)]
    all_masks = head_masks(model, DATA.clean, everything)
    assert knock_out(means, DATA.clean, DATA.groups, outside(model, DATA.clean, all_masks)) == []
    edits = knock_out(means, DATA.clean, DATA.groups, outside(model, DATA.clean, {}))
    zeros = [Replace(At("z", layer), 0.0) for layer in range(model.depth)]
    assert torch.equal(logits(model, DATA.clean, edits), logits(model, DATA.clean, zeros))


def test_templates_and_lengths_without_reference_prompts_are_refused(model):
    means = reference_means(model, DATA.corrupt.rows([2, 4]), DATA.groups[[2, 4]])
    means.check(DATA.clean.rows([2]), DATA.groups[[2]])
    with pytest.raises(UserError, match=r"template \(group\) 7. Groups of the reference prompts: 3"):
        means.check(DATA.clean, DATA.groups)
    with pytest.raises(UserError, match="prompt 0 has 8 tokens"):
        means.check(DATA.clean.rows([0]), torch.tensor([3]))


@pytest.mark.parametrize("kind", ["gpt2", "gptj", "opt", "gpt_neox", "llama"])
@pytest.mark.parametrize("mlps", ["recompute", "freeze"])
def test_direct_effects_are_path_patching_by_definition(kind, mlps):
    """Freeze every head (and MLP) at its value in the knocked-out run, but for the sender, and run it all."""
    model = tiny(kind, dtype=torch.float64)
    end, last = DATA.positions["END"], At("resid_post", model.depth - 1, positions=DATA.positions["END"])
    means = reference_means(model, DATA.corrupt, DATA.groups)
    masks = head_masks(model, DATA.clean, [(1, 2, end[:, None]), (1, None, None)])
    clean_edits, corrupt_edits = (
        knock_out(means, batch, DATA.groups, masks) for batch in (DATA.clean, DATA.corrupt)
    )

    def measure(stream):
        return model.final_norm(stream).double() @ torch.linspace(-1, 1, model.width, dtype=torch.float64)

    base, patched = direct_effects(
        model, (DATA.clean, end, clean_edits), (DATA.corrupt, end, corrupt_edits), measure, mlps, masks
    )
    reads = [Read(At(site, layer)) for site in ("z", "mlp_out") for layer in range(model.depth)]
    old = run(model, DATA.clean, clean_edits, reads, logits=None)
    new = run(model, DATA.corrupt, corrupt_edits, reads, logits=None)
    plain = run(model, DATA.clean, clean_edits, [last], logits=None)[last][:, 0]
    torch.testing.assert_close(base, measure(plain), rtol=0, atol=1e-9)
    for layer in range(model.depth):
        for head in range(model.heads):
            frozen = [Replace(At("z", i), old["z", i]) for i in range(model.depth)]
            kept = range(model.depth) if mlps == "freeze" else [1]
            frozen += [Replace(At("mlp_out", i), old["mlp_out", i]) for i in kept]
            sender = At("z", layer, heads=[head], positions=end)
            value = new["z", layer][torch.arange(5), end, head][:, None, None]
            stream = run(model, DATA.clean, [*frozen, Replace(sender, value)], [last], logits=None)[last]
            atol = 1e-5 if kind == "llama" else 1e-9  # its norms compute in float32
            torch.testing.assert_close(patched[layer, head], measure(stream[:, 0]), rtol=0, atol=atol)
    torch.testing.assert_close(patched[1, 2], base, rtol=0, atol=1e-12)  # knocked out: the same in both
