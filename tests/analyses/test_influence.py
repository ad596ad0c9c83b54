"""Influence scores against the definitions, in float64 on tiny models, and what must not change them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from analyses import influence_brute as brute
from models.tiny_models import EAGER_ONLY, KINDS, tiny
from torch import Tensor

from repro.analyses.influence import algebra
from repro.analyses.influence.algebra import Preconditioned, low_rank
from repro.analyses.influence.api import (
    Factors,
    Tracked,
    fit_factors,
    scores,
    self_influence,
    tracked_modules,
)
from repro.analyses.influence.curvature import decomposed
from repro.analyses.influence.modules import watched
from repro.analyses.influence.passes import drawn, uniforms
from repro.analyses.influence_specs import InfluenceScores
from repro.data.token_blocks import Blocks
from repro.errors import UserError

STRATEGIES = ["identity", "diagonal", "kfac", "ekfac"]
N, Q, T = 6, 3, 8


def settings(**given: Any) -> InfluenceScores:
    return InfluenceScores.parse({"dtype": "float64", "fisher": "empirical", **given}, "analysis")


def tokens(count: int, seed: int, length: int = T) -> Tensor:
    return torch.randint(2, 61, (count, length), generator=torch.Generator().manual_seed(seed))


def blocks() -> tuple[Blocks, Blocks]:
    return Blocks(tokens(N, 0)), Blocks(tokens(Q, 1))


def measured(model: Any, given: InfluenceScores, train: Blocks, query: Blocks) -> Any:
    return scores(model, fit_factors(model, train, given), query, train, given)


def close(found: Tensor, expected: Tensor, relative: float) -> None:
    assert float((found - expected).abs().max()) <= relative * float(expected.abs().max())


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("damping", [1e-3, None])
def test_scores_are_those_of_the_definition(strategy: str, damping: float | None) -> None:
    model, (train, query) = tiny("gpt2", dtype=torch.float64), blocks()
    given = settings(strategy=strategy, damping=damping)
    found = measured(model, given, train, query)
    names = [one.name for one in tracked_modules(model)]
    assert len(names) == 12 and found.modules == names
    expected = brute.scores(model, names, strategy, damping, train.tokens, query.tokens)
    close(found.per_module, expected, 1e-9)
    close(found.total, expected.sum(0), 1e-9)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gpt2"])
def test_every_family_has_the_scores_of_the_definition(kind: str) -> None:
    """By module: linear maps without a bias, fused and not, on rows that OPT may run as one axis."""
    model, (train, query) = tiny(kind, "sdpa" if kind not in EAGER_ONLY else "eager", torch.float64), blocks()
    names = [one.name for one in tracked_modules(model)][3:9]  # of two layers: half of them says enough
    found = measured(model, settings(modules=names, damping=1e-2), train, query)
    expected = brute.scores(model, names, "ekfac", 1e-2, train.tokens, query.tokens)
    close(found.per_module, expected, 1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_modules_are_found_by_site_in_every_family(kind: str) -> None:
    model = tiny(kind)
    every = [one.name for one in tracked_modules(model)]
    found = {name: tracked_modules(model, [name]) for name in ("qkv", "attn_out", "mlp_in", "mlp_out")}
    assert sorted(every) == sorted(one.name for some in found.values() for one in some)
    assert [one.module for one in found["attn_out"]] == [layer.out for layer in model.layers]
    assert [one.module for one in found["mlp_out"]] == [layer.down for layer in model.layers]
    assert [one.name for one in tracked_modules(model, ["mlp_out", "qkv"])] == [
        name for name in every if name in {one.name for one in found["mlp_out"] + found["qkv"]}
    ]
    with pytest.raises(UserError, match="analysis.modules: z: no projection"):
        tracked_modules(model, ["qkv", "z"])


@pytest.mark.parametrize("strategy", ["kfac", "ekfac"])
def test_padding_is_neither_counted_nor_scored(strategy: str) -> None:
    """Masked: as the definition has it on real positions; and what stands at padding changes nothing."""
    model, (train, query) = tiny("gpt2", dtype=torch.float64), blocks()
    masks = [torch.ones(N, T, dtype=torch.bool), torch.ones(Q, T, dtype=torch.bool)]
    masks[0][0, 5:] = masks[0][3, 6:] = masks[1][1, 4:] = False
    masks[0][2, :2] = False
    given = settings(strategy=strategy, modules=["h.1"], damping=1e-3)
    names = [f"transformer.h.1.{name}" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]
    found = measured(model, given, Blocks(train.tokens, masks[0]), Blocks(query.tokens, masks[1])).per_module
    expected = brute.scores(
        model, names, strategy, 1e-3, train.tokens, query.tokens, masks=(masks[0], masks[1])
    )
    close(found, expected, 1e-9)
    other = Blocks(torch.where(masks[0], train.tokens, 7), masks[0])
    close(measured(model, given, other, Blocks(query.tokens, masks[1])).per_module, found, 1e-9)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(kind: str, side: str) -> None:
    model, (train, query) = tiny(kind, "sdpa", torch.float64), blocks()
    given = settings(damping=None, modules=["h.1" if kind == "gpt2" else "layers.1"])
    whole = measured(model, given, train, query).total

    def padded(some: Blocks) -> Blocks:
        ends = (3, 0) if side == "left" else (0, 3)
        real = torch.ones_like(some.tokens, dtype=torch.bool)
        return Blocks(*(torch.nn.functional.pad(x, ends) for x in (some.tokens, real)))

    close(measured(model, given, padded(train), padded(query)).total, whole, 1e-10)


def test_given_labels_fit_the_factors_and_nothing_else() -> None:
    model, (train, query) = tiny("gpt2", dtype=torch.float64), blocks()
    labels, names = tokens(N, 9, T - 1), ["transformer.h.0.mlp.c_fc"]
    found = measured(model, settings(fisher="given", modules=names, damping=1e-3),
                     Blocks(train.tokens, None, labels), query).per_module  # fmt: skip
    expected = brute.scores(model, names, "ekfac", 1e-3, train.tokens, query.tokens, labels)
    close(found, expected, 1e-9)
    with pytest.raises(UserError, match="the data have no fisher_labels"):
        measured(model, settings(fisher="given"), train, query)


@pytest.mark.parametrize("measurement", ["log_probability", "margin"])
def test_measurements_are_gradients_of_their_formulas(measurement: str) -> None:
    model, (train, query) = tiny("gpt2", dtype=torch.float64), blocks()
    names = ["transformer.h.2.attn.c_proj"]
    given = settings(strategy="identity", modules=names, measurement=measurement)
    found, left = measured(model, given, train, query).total, []
    module = brute.parameters(model, names)
    for parameter in module[names[0]].parameters():
        parameter.requires_grad_(True)
    for row in query.tokens:
        share = model.hf(row[None]).logits[0, :-1].log_softmax(-1)
        right = share.gather(1, row[1:, None])[:, 0]
        odds = right - torch.log1p(-right.exp())
        of = right.sum() if measurement == "log_probability" else -odds.sum()
        left.append(brute.gradient(model, module, of)[names[0]])
    right_side = brute.gradients(model, names, train.tokens)
    expected = torch.tensor([[(q * n[names[0]]).sum() for n in right_side] for q in left])
    close(found, expected, 1e-9)
    for parameter in module[names[0]].parameters():
        parameter.requires_grad_(False)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_scores_by_token_sum_to_the_whole_and_the_last_one_is_nothing(strategy: str) -> None:
    for dtype, kind, tolerance in (
        ("float64", torch.float64, 1e-10),
        ("float32", torch.float32, 1e-4),
    ):
        model, (train, query) = tiny("gpt2", dtype=kind), blocks()
        given = settings(strategy=strategy, dtype=dtype, damping=None)
        whole = measured(model, given, train, query).total
        found = measured(model, given.model_copy(update={"per_token": True}), train, query).per_token
        assert found.shape == (Q, N, T) and bool((found[..., -1] == 0).all())
        close(found.sum(-1), whole, tolerance)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_self_influence_is_the_diagonal_of_queries_that_are_the_training_blocks(strategy: str) -> None:
    model, (train, _) = tiny("gpt2", dtype=torch.float64), blocks()
    for measurement in ("loss", "log_probability", "margin"):
        given = settings(strategy=strategy, damping=None, measurement=measurement)
        factors = fit_factors(model, train, given)
        expected = scores(model, factors, train, train, given).total.diagonal()
        close(self_influence(model, factors, train, given), expected, 1e-9)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_batches_and_partitions_change_nothing(strategy: str) -> None:
    """Drawn labels included: a draw belongs to its block and position.

    There are more positions than columns of any covariance. With fewer, some eigenvectors are arbitrary, and
    eigenvalues of other labels than those of the covariance depend on them.
    """
    model, (_, query) = tiny("gpt2", dtype=torch.float64), blocks()
    train = Blocks(tokens(16, 0))
    given = settings(strategy=strategy, damping=1e-4, fisher="sampled")
    whole = measured(model, given, train, query)
    own = self_influence(model, fit_factors(model, train, given), train, given)
    for changed in (
        {"factor_batch": 1, "train_batch": 1, "query_batch": 1},
        {"partitions": 4, "factor_batch": 2, "query_batch": 1, "query_accumulation": 2},
        {"module_partitions": 5, "train_batch": 4, "per_module": False},
    ):
        other = given.model_copy(update=changed)
        close(measured(model, other, train, query).total, whole.total, 1e-9)
        close(self_influence(model, fit_factors(model, train, other), train, other), own, 1e-9)


def test_the_sum_of_queries_has_the_sum_of_scores() -> None:
    model, (train, query) = tiny("gpt2", dtype=torch.float64), blocks()
    whole = measured(model, settings(), train, query).total.sum(0, keepdim=True)
    for batch in (1, 2, 3):
        given = settings(sum_queries=True, query_batch=batch)
        close(measured(model, given, train, query).total, whole, 1e-9)


@pytest.mark.parametrize("exact", [True, False])
def test_a_full_rank_changes_nothing_and_a_lower_one_is_the_best(exact: bool) -> None:
    whole = torch.randn(3, 20, 13, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left, right = low_rank(whole, 13, exact, seed=0)
    close(left @ right, whole, 1e-12)
    falling = torch.logspace(0, -6, 13, dtype=torch.float64)
    basis = [torch.linalg.qr(torch.randn(3, side, 13, dtype=torch.float64))[0] for side in (20, 13)]
    made = basis[0] * falling @ basis[1].mT
    left, right = low_rank(made, 4, exact, seed=0)
    error = torch.linalg.matrix_norm(left @ right - made, 2)
    assert bool((error < 1.0001 * falling[4]).all())  # the next singular value: none of this rank is nearer


@pytest.mark.parametrize("svd", ["exact", "randomised"])
def test_queries_cut_to_their_rank_have_the_same_scores(svd: str) -> None:
    """Gradients of blocks of 8 tokens have rank 7, so a rank of 7 loses nothing without curvature."""
    model, (train, query) = tiny("gpt2", dtype=torch.float64), blocks()
    whole = measured(model, settings(strategy="identity"), train, query).total
    given = settings(strategy="identity", rank=T - 1, svd=svd)
    close(measured(model, given, train, query).total, whole, 1e-8)
    found = measured(model, given.model_copy(update={"per_token": True}), train, query).per_token
    close(found.sum(-1), whole, 1e-8)
    less = measured(model, settings(rank=2, svd=svd), train, query).total
    cut = settings(rank=2, svd=svd, module_partitions=5, query_batch=1, partitions=2)
    close(measured(model, cut, train, query).total, less, 1e-9)
    assert float((less - measured(model, settings(), train, query).total).abs().max()) > 1e-3


def test_one_block_with_one_position_has_one_curvature() -> None:
    """N = T = 1: the mean over blocks of squares and the product of mean squares are the same number."""
    model, (train, query) = tiny("gpt2", dtype=torch.float64), blocks()
    one = tracked_modules(model, ["h.1.mlp.c_fc"])[0]
    a, g = (x[2:3] for x in brute.pairs(model, one.name, train.tokens[:1]))
    sums = {"count": torch.tensor(1), f"A.{one.name}": a.T @ a, f"S.{one.name}": g.T @ g}
    eigen = decomposed(sums, [one], settings())
    square = algebra.rotated_gradients(
        a[None, :, :-1], g[None], eigen[f"QS.{one.name}"], eigen[f"QA.{one.name}"]
    )
    squares = {"count": torch.tensor(1), f"L.{one.name}": square[0] ** 2}
    found = []
    for strategy in ("kfac", "ekfac"):
        given = settings(strategy=strategy, damping=None, modules=[one.name])
        factors = Factors(strategy, [one], {}, eigen, squares)
        found.append(scores(model, factors, query, train, given).total)
    close(found[0], found[1], 1e-9)


def test_a_linear_output_with_a_constant_gradient_has_the_dense_inverse() -> None:
    """One position a block, scalar output with slope c: the Fisher matrix is c^2 times the mean of a a'."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(9, 1, 5, generator=generator, dtype=torch.float64)
    g = torch.full((9, 1, 1), 1.7, dtype=torch.float64)
    module = torch.nn.Linear(5, 1, dtype=torch.float64)
    one = Tracked("linear", module, 5, 1, True)
    sums = {"count": torch.tensor(9), "A.linear": torch.zeros(6, 6), "S.linear": torch.zeros(1, 1)}
    sums = {name: tensor if name == "count" else tensor.double() for name, tensor in sums.items()}
    algebra.add_inputs(sums["A.linear"], a, 9, True)
    algebra.add_symmetric(sums["S.linear"], g.flatten(0, 1))
    eigen = decomposed(sums, [one], settings())
    square = algebra.rotated_gradients(a, g, eigen["QS.linear"], eigen["QA.linear"]).square().sum(0)
    factors = Factors("ekfac", [one], {}, eigen, {"count": torch.tensor(9), "L.linear": square})
    curvature = factors.curvature(one, settings(damping=0.03), "cpu")
    query = curvature.precondition(curvature.rotated(a[:2], g[:2], 6))
    found = Preconditioned(one, query).scores(a, g)
    whole = torch.cat([a[:, 0], torch.ones(9, 1, dtype=torch.float64)], 1) * 1.7  # gradients of blocks
    dense = whole.T @ whole / 9
    # EK-FAC is exact if A's eigenvectors diagonalise it, which they do: the Fisher matrix is a multiple of A.
    expected = whole[:2] @ torch.linalg.inv(dense + 0.03 * torch.eye(6, dtype=torch.float64)) @ whole.T
    close(found, expected, 1e-8)


def test_labels_are_drawn_from_the_model() -> None:
    share = torch.tensor([0.1, 0.0, 0.6, 0.3], dtype=torch.float64).expand(20_000, 4)
    found = drawn(share, uniforms(3, "test", 1, 20_001)[0])
    frequency = torch.bincount(found, minlength=4) / len(found)
    assert float((frequency - share[0]).abs().max()) < 0.02 and frequency[1] == 0  # 6 standard errors


def test_the_model_is_left_as_it_was() -> None:
    model, (train, query) = tiny("gpt2"), blocks()
    before = {name: (one.data_ptr(), one.clone()) for name, one in model.hf.named_parameters()}
    with torch.no_grad():
        logits = model.hf(train.tokens).logits
        measured(model, settings(), train, query)
        for name, one in model.hf.named_parameters():
            assert one.data_ptr() == before[name][0] and torch.equal(one, before[name][1])
        assert torch.equal(model.hf(train.tokens).logits, logits)
        with watched(tracked_modules(model), lambda number, a, g: None):
            assert torch.equal(model.hf(train.tokens).logits, logits)
    assert not any(one._forward_hooks for one in model.hf.modules())


@pytest.mark.parametrize("gentle", [False, True])
def test_half_precision_keeps_the_ranking(gentle: bool) -> None:
    model, (train, query) = tiny("gpt2"), blocks()
    whole = measured(model, settings(dtype="float32", damping=None), train, query).total
    half = measured(model, settings(dtype="bfloat16", damping=None, gentle=gentle), train, query).total
    assert float((half - whole).norm() / whole.norm()) < 0.1 and not torch.equal(half, whole)
