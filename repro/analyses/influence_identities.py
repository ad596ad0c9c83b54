"""What must hold of influence scores whatever the model: identities, in float64 on the model at hand.

Each number is the largest difference between two ways to the same thing, as a share of the largest value.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repro.analyses import lm_inputs as lm
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
from repro.analyses.influence.passes import Gradients, precision
from repro.analyses.influence_scores import blocks_of
from repro.analyses.influence_specs import InfluenceIdentities
from repro.data.token_blocks import Blocks
from repro.models.language_model import LanguageModel
from repro.progress import progress
from repro.results import NamedArray, Result

STRATEGIES = ("identity", "diagonal", "kfac", "ekfac")
Pairs = list[
    tuple[Tensor, Tensor]
]  # by module: inputs a [B, T, features], output gradients g [B, T, outputs]


def run(subject: Any, data: Any, record: Any, directory: Path | None, spec: InfluenceIdentities) -> Result:
    """On the first blocks and queries of the data, with empirical labels and damping 0.1 x mean eigenvalue.

    Scalars: hooks.logits (absolute, float32: logits watched and not); token.sum and token.sum.float32 (scores
    by token against pairwise ones), token.last (absolute), token.shape (1: it is queries x blocks x tokens);
    self.diagonal; module.sum; batches (sizes of batches, partitions of blocks and modules, query
    accumulation); rank.exact and rank.randomised (queries cut to full rank); kfac.one_position;
    identity.autograd (against gradients of the parameters); dense (ekfac against the
    dense inverse Fisher matrix).
    Arrays: token, batches, self, module [strategy]: what some of these are the largest of.
    """
    model = lm.model_of(subject)
    blocks = blocks_of(model, data)
    train, query = blocks.train.rows(slice(0, spec.blocks)), blocks.query.rows(slice(0, spec.queries))
    settings = spec.model_copy(update={"dtype": "float64", "fisher": "empirical", "damping": "heuristic"})
    tracked = tracked_modules(model, spec.modules)
    by_strategy: dict[str, list[float]] = {name: [] for name in ("token", "self", "module", "batches")}
    scalars = {"hooks.logits": _hooks(model, tracked, train)}
    with progress(len(STRATEGIES) + 3, "identities", "checks") as bar:
        for strategy in STRATEGIES:
            found = _of_strategy(model, train, query, settings.model_copy(update={"strategy": strategy}))
            for name, values in by_strategy.items():
                values.append(found[name])
            for name in ("token.last", "token.shape", "token.sum.float32"):
                pick = min if name == "token.shape" else max
                scalars[name] = pick(scalars.get(name, found[name]), found[name])
            bar.advance()
        scalars["identity.autograd"] = _autograd(model, tracked, train, query, settings)
        bar.advance()
        scalars.update(_of_modules(model, tracked, train, query, settings))
        bar.advance(2)
    names = {"token": "token.sum", "self": "self.diagonal", "module": "module.sum", "batches": "batches"}
    scalars.update({names[name]: max(values) for name, values in by_strategy.items()})
    axes: dict[str, Any] = {"strategy": list(STRATEGIES)}
    arrays = {name: NamedArray(torch.tensor(values).numpy(), axes) for name, values in by_strategy.items()}
    return Result(scalars, arrays, {"blocks": f"{blocks.source}: {len(train)} blocks, {len(query)} queries"})


def _off(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def _hooks(model: LanguageModel, tracked: list[Tracked], train: Blocks) -> float:
    """Nothing is put in place of a module, so that logits under its hooks are the very same."""
    tokens = train.tokens[:1].to(model.device)
    with torch.no_grad(), precision(model, "float32"):
        plain = model.hf(tokens, use_cache=False).logits
        with watched(tracked, lambda number, a, g: None):
            return float((model.hf(tokens, use_cache=False).logits - plain).abs().max())


def _of_strategy(
    model: LanguageModel, train: Blocks, query: Blocks, settings: InfluenceIdentities
) -> dict[str, float]:
    factors = fit_factors(model, train, settings)

    def measured(**changed: Any) -> Any:
        other = settings.model_copy(update={"per_module": False, **changed})
        return scores(model, factors, query, train, other)

    whole, token = measured().total, measured(per_token=True).per_token
    small = {"factor_batch": 1, "train_batch": 1, "query_batch": 1, "query_accumulation": 1}
    cut = {
        "partitions": min(3, len(train)),
        "module_partitions": 2,
        "query_batch": 2,
        "query_accumulation": 1,
    }
    batches = 0.0
    for changed in (small, cut):
        other = settings.model_copy(update={"per_module": False, **changed})
        again = scores(model, fit_factors(model, train, other), query, train, other).total
        batches = max(batches, _off(again, whole))
    single = settings.model_copy(update={"dtype": "float32", "per_module": False})
    factors32 = fit_factors(model, train, single)
    whole32 = scores(model, factors32, query, train, single).total
    by_token = single.model_copy(update={"per_token": True})
    token32 = scores(model, factors32, query, train, by_token).per_token
    assert token32 is not None
    own = scores(model, factors, train, train, settings.model_copy(update={"per_module": False})).total
    return {
        "token": _off(token.sum(-1), whole),
        "token.last": float(token[..., -1].abs().max()),
        "token.shape": float(token.shape == (len(query), len(train), train.length)),
        "token.sum.float32": _off(token32.sum(-1), whole32),
        "self": _off(self_influence(model, factors, train, settings), own.diagonal()),
        "module": _off(measured(per_module=True).per_module.sum(0), whole),
        "batches": batches,
    }


def _autograd(
    model: LanguageModel, tracked: list[Tracked], train: Blocks, query: Blocks, settings: InfluenceIdentities
) -> float:
    """Scores without curvature against inner products of the parameters' own gradients, block by block."""
    plain = settings.model_copy(update={"strategy": "identity"})
    found = scores(model, fit_factors(model, train, plain), query, train, plain).total
    watched_ones = [p for one in tracked for p in one.module.parameters()]
    with precision(model, settings.dtype), torch.enable_grad():
        for parameter in watched_ones:
            parameter.requires_grad_(True)
        try:
            left, right = (
                torch.stack([_gradient(model, part, i, watched_ones) for i in range(len(part))])
                for part in (query, train)
            )
        finally:
            for parameter in watched_ones:
                parameter.requires_grad_(False)
    return _off(found, (left @ right.T).cpu())


def _gradient(model: LanguageModel, blocks: Blocks, row: int, parameters: list[nn.Parameter]) -> Tensor:
    real = slice(None) if blocks.mask is None else blocks.mask[row]
    tokens = blocks.tokens[row][real][None].to(model.device)
    logits = model.hf(tokens, use_cache=False).logits[0, :-1]
    loss = nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum")
    return torch.cat([one.flatten() for one in torch.autograd.grad(loss, parameters)])


def _of_modules(
    model: LanguageModel, tracked: list[Tracked], train: Blocks, query: Blocks, settings: InfluenceIdentities
) -> dict[str, float]:
    """What is an identity of one module's inputs and gradients: the largest difference over modules."""
    with precision(model, settings.dtype):
        asked, seen = (_captured(model, tracked, part, settings) for part in (query, train))
    factors = fit_factors(model, train, settings.model_copy(update={"strategy": "ekfac"}))
    worst: dict[str, float] = dict.fromkeys(
        ("rank.exact", "rank.randomised", "kfac.one_position", "dense"), 0.0
    )
    for one, (qa, qg), (a, g) in zip(tracked, asked, seen, strict=True):
        curvature = factors.curvature(one, settings, one.device)
        whole = curvature.precondition(curvature.rotated(qa, qg, one.inputs))
        expected = Preconditioned(one, whole).scores(a, g)
        for name, exact in (("rank.exact", True), ("rank.randomised", False)):
            cut = low_rank(whole, min(whole.shape[1:]), exact, settings.seed)
            worst[name] = max(worst[name], _off(Preconditioned(one, None, cut).scores(a, g), expected))
        worst["kfac.one_position"] = max(worst["kfac.one_position"], _one_position(one, a, g, settings))
        worst["dense"] = max(worst["dense"], _dense(one, a, settings))
    return worst


def _captured(
    model: LanguageModel, tracked: list[Tracked], blocks: Blocks, settings: InfluenceIdentities
) -> Pairs:
    kept: dict[int, tuple[Tensor, Tensor]] = {}
    keep: Callable[[int, Tensor, Tensor], None] = lambda number, a, g: kept.update({number: (a, g)})  # noqa: E731
    Gradients(model, tracked, settings).take(blocks, keep)
    return [kept[number] for number in range(len(tracked))]


def _fitted(one: Tracked, a: Tensor, g: Tensor, strategy: str, settings: InfluenceIdentities) -> Factors:
    """Factors of one module from its inputs and gradients at all positions."""
    sums = {
        "count": torch.tensor(a.shape[0] * a.shape[1]),
        f"A.{one.name}": a.new_zeros(one.inputs, one.inputs),
        f"S.{one.name}": a.new_zeros(one.outputs, one.outputs),
    }
    algebra.add_inputs(sums[f"A.{one.name}"], a, int(sums["count"]), one.bias)
    algebra.add_symmetric(sums[f"S.{one.name}"], g.flatten(0, 1))
    eigen = decomposed(sums, [one], settings)
    rotated = algebra.rotated_gradients(a, g, eigen[f"QS.{one.name}"], eigen[f"QA.{one.name}"])
    squares = {"count": torch.tensor(len(a)), f"L.{one.name}": rotated.square().sum(0)}
    return Factors(strategy, [one], {}, eigen, squares)


def _preconditioned(factors: Factors, one: Tracked, a: Tensor, g: Tensor, settings: Any) -> Preconditioned:
    curvature = factors.curvature(one, settings, a.device)
    return Preconditioned(one, curvature.precondition(curvature.rotated(a, g, one.inputs)))


def _one_position(one: Tracked, a: Tensor, g: Tensor, settings: InfluenceIdentities) -> float:
    """N = T = 1: kfac's and ekfac's eigenvalues are the same."""
    middle = a.shape[1] // 2
    here = (a[:1, middle : middle + 1], g[:1, middle : middle + 1])
    found = [
        _preconditioned(_fitted(one, *here, strategy, settings), one, a, g, settings).scores(a, g)
        for strategy in ("kfac", "ekfac")
    ]
    return _off(found[0], found[1])


def _dense(one: Tracked, a: Tensor, settings: InfluenceIdentities) -> float:
    """One position a block, a scalar linear output with slope 1: the Fisher matrix is the mean of a a'."""
    scalar = Tracked(one.name, one.module, one.features, 1, one.bias)
    middle = a.shape[1] // 2
    inputs, slope = a[:, middle : middle + 1], a.new_ones(len(a), 1, 1)
    fit = settings.model_copy(update={"damping": 0.1})
    factors = _fitted(scalar, inputs, slope, "ekfac", fit)
    found = _preconditioned(factors, scalar, inputs, slope, fit).scores(inputs, slope)
    gradients = algebra.gradients(inputs, slope, scalar.inputs)[:, 0]
    fisher = gradients.T @ gradients / len(gradients)
    inverse = torch.linalg.inv(fisher + 0.1 * torch.eye(len(fisher)).to(fisher))
    return _off(found, gradients @ inverse @ gradients.T)
