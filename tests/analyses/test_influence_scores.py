"""The analysis: arrays, parts, what is saved and found again, and what is refused."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models.tiny_models import tiny

from repro import results
from repro.analyses import influence_identities, influence_scores
from repro.analyses.influence import factors as fitting
from repro.analyses.influence import passes, saved, scoring
from repro.analyses.influence.api import fit_factors, scores
from repro.analyses.influence_specs import InfluenceIdentities, InfluenceScores
from repro.data.token_blocks import Blocks, TokenBlocks
from repro.errors import UserError
from repro.shards import Part

N, Q, T = 16, 3, 8  # more positions than columns of any covariance
MODULES = ["h.1.attn.c_proj", "h.2.mlp.c_fc"]


def spec(**given: Any) -> InfluenceScores:
    return InfluenceScores.parse({"dtype": "float64", "modules": MODULES, **given}, "analysis")


def data() -> TokenBlocks:
    draw = torch.Generator().manual_seed(5)
    train, query = (Blocks(torch.randint(2, 61, (count, T), generator=draw)) for count in (N, Q))
    return TokenBlocks(train, query, "made up", "", "token_blocks")


def model() -> Any:
    return tiny("gpt2", dtype=torch.float64)


def test_arrays_have_the_documented_axes() -> None:
    found = influence_scores.run(model(), data(), None, None, spec(per_token=True))
    arrays = found.arrays
    names = ["transformer.h.1.attn.c_proj", "transformer.h.2.mlp.c_fc"]
    assert arrays["scores"].axes == {"query": Q, "train": N}
    assert arrays["per_module"].axes == {"module": names, "query": Q, "train": N}
    assert arrays["per_token"].axes == {"query": Q, "train": N, "position": T}
    assert arrays["self_influence"].axes == {"train": N} and bool((arrays["self_influence"].values > 0).all())
    whole = arrays["scores"].values
    assert whole.dtype == np.float64
    np.testing.assert_allclose(arrays["per_module"].values.sum(0), whole, rtol=1e-12)
    np.testing.assert_allclose(arrays["per_token"].values.sum(-1), whole, rtol=1e-9)
    percent = arrays["stage_percent"].values
    assert percent.sum() == pytest.approx(100)
    assert found.scalars["profile.pairwise_share"] == pytest.approx(percent[0] / 100)
    calls = dict(zip(arrays["stage_calls"].labels("stage"), arrays["stage_calls"].values, strict=True))
    assert [calls[name] for name in ("fit_covariance", "eigendecomposition", "fit_lambda")] == [1, 1, 1]


@pytest.mark.parametrize("count", [2, 3, 16])
def test_parts_together_are_the_whole(count: int, tmp_path: Path) -> None:
    """Each part fits on all blocks, of which the parts share out the work; drawn labels are the same."""
    given = spec(per_token=True)
    whole = influence_scores.run(model(), data(), None, tmp_path / "whole", given)
    parts = []
    for index in reversed(range(count)):
        place = tmp_path / "shards" / f"{index}-of-{count}"
        place.mkdir(parents=True)
        results.save(place, influence_scores.run_part(model(), data(), place, given, Part(index, count)))
        parts.insert(0, results.load(place))
    found = influence_scores.merge(parts, given)
    for name in ("scores", "per_module", "per_token", "self_influence"):
        expected = whole.arrays[name]
        assert found.arrays[name].axes == expected.axes
        np.testing.assert_allclose(
            found.arrays[name].values, expected.values, atol=1e-9 * np.abs(expected.values).max()
        )
    (folder,) = (tmp_path / "factors").iterdir()  # one for all parts
    assert sorted(path.name for path in folder.glob("*.safetensors")) == [
        "covariance.safetensors", "eigen.safetensors", "lambda.safetensors",
    ]  # fmt: skip
    assert found.arrays["stage_calls"].values[3] == count  # partitions of the covariance, over all parts
    with pytest.raises(UserError, match=f"only {N} items"):
        influence_scores.run_part(model(), data(), None, given, Part(0, N + 1))


def test_two_processes_share_the_partitions_out(tmp_path: Path) -> None:
    """Each partition is computed once, by whoever finds it free; both get the sum."""
    computed, found, gate = [], {}, threading.Barrier(2)

    def work(name: str) -> None:
        def compute(index: int) -> dict[str, torch.Tensor]:
            computed.append(index)
            if len(computed) <= 2:
                gate.wait(timeout=20)  # both are at work at the same time
            return {"x": torch.tensor([10.0**index])}

        found[name] = saved.summed(tmp_path, "stage", 4, compute)["x"].item()

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(computed) == [0, 1, 2, 3] and found == {"a": 1111.0, "b": 1111.0}


@pytest.mark.parametrize("stage", ["covariance", "lambda", "scores"])
def test_what_was_done_before_an_interruption_is_not_done_again(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, calls = spec(partitions=3), []
    whole = influence_scores.run(model(), data(), None, None, given).arrays["scores"].values
    take = passes.Gradients.take

    def interrupted(self: Any, blocks: Blocks, *args: Any) -> None:
        calls.append(len(blocks))
        if len(calls) == {"covariance": 2, "lambda": 5, "scores": 9}[stage]:
            raise KeyboardInterrupt
        take(self, blocks, *args)

    monkeypatch.setattr(passes.Gradients, "take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        influence_scores.run(model(), data(), None, tmp_path, given)
    found = influence_scores.run(model(), data(), None, tmp_path, given).arrays
    np.testing.assert_array_equal(found["scores"].values, whole)
    # 3 partitions each of covariance, Lambda, scores; queries; self-influence; what was cut short, and
    # queries once more where scores were.
    assert len(calls) == 3 + 3 + 3 + 1 + 1 + 1 + (stage == "scores")
    count = dict(zip(found["stage_calls"].labels("stage"), found["stage_calls"].values, strict=True))
    assert count["fit_covariance"] == count["fit_lambda"] == 3, "the table counts what was done before"


def test_strategies_share_what_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of, blocks = model(), data().train
    fit_factors(of, blocks, spec(strategy="ekfac"), tmp_path)
    for stage in ("covariance_sums", "square_sums", "decomposed"):
        monkeypatch.setattr(fitting, stage, lambda *args, **given: pytest.fail("fitted again"))
    again = fit_factors(of, blocks, spec(strategy="kfac", damping=0.3, rank=2), tmp_path)
    expected = fit_factors(of, blocks, spec(strategy="ekfac"), tmp_path)
    assert again.eigen.keys() == expected.eigen.keys() and expected.squares and not again.squares


def test_factors_are_fitted_on_the_first_blocks_only() -> None:
    of, blocks = model(), data().train
    found = fit_factors(of, blocks, spec(factor_examples=5, fisher="empirical"))
    expected = fit_factors(of, blocks.rows(slice(0, 5)), spec(fisher="empirical"))
    assert all(torch.equal(found.eigen[name], tensor) for name, tensor in expected.eigen.items())
    assert all(torch.equal(found.squares[name], tensor) for name, tensor in expected.squares.items())


def test_factors_of_something_else_are_refused(tmp_path: Path) -> None:
    of, blocks = model(), data().train
    fit_factors(of, blocks, spec(strategy="kfac"), tmp_path)
    given = {"strategy": "kfac", "factors_path": str(tmp_path)}
    fit_factors(of, blocks, spec(**given))
    fit_factors(of, blocks, spec(**given, damping=0.5))
    other = tiny("gpt2", dtype=torch.float64, seed=1)
    for arguments, why in (
        ((other, blocks, spec(**given)), "weights of another model"),
        ((of, blocks.rows(slice(0, 9)), spec(**given)), "other blocks"),
        (
            (of, blocks, spec(**{**given, "dtype": "float32"})),
            r"another dtype \(float64, this run has float32\)",
        ),
        ((of, blocks, spec(**given, fisher="empirical")), "other labels"),
        ((of, blocks, spec(**given, seed=1)), "other draws"),
        ((of, blocks, spec(**{**given, "modules": None})), "other modules"),
        ((of, blocks, spec(**{**given, "strategy": "ekfac"})), "has no lambda.safetensors"),
    ):
        with pytest.raises(UserError, match=why):
            fit_factors(*arguments)
    (folder,) = tmp_path.iterdir()
    (folder / "eigen.safetensors").write_bytes(b"cut short")
    with pytest.raises(UserError, match="cannot be read"):
        fit_factors(of, blocks, spec(**given))


def test_numbers_that_are_not_finite_are_refused() -> None:
    of = model()
    with torch.no_grad():
        of.hf.transformer.h[1].mlp.c_fc.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match="the gradient of the loss is not finite"):
        influence_scores.run(of, data(), None, None, spec())


def test_flat_directions_without_damping_are_refused() -> None:
    """Layer norm takes out the mean, so that with the column of ones its output has rank d of d + 1."""
    with pytest.raises(UserError, match=r"damping=0.*h.2.mlp.c_fc.*inputs has rank 24 of 25"):
        influence_scores.run(model(), data(), None, None, spec(damping=0, modules=["h.2.mlp.c_fc"]))
    few = spec(damping=0, strategy="diagonal", modules=["h.2.attn.c_attn"])
    assert np.isfinite(influence_scores.run(model(), data(), None, None, few).arrays["scores"].values).all()


def test_more_parts_than_blocks_and_too_long_blocks_are_refused() -> None:
    with pytest.raises(UserError, match="analysis.partitions: got 17, and there are only 16"):
        influence_scores.run(model(), data(), None, None, spec(partitions=17))
    long = TokenBlocks(Blocks(torch.ones(2, 40, dtype=torch.long)), data().query, "", "", "")
    with pytest.raises(UserError, match="blocks of 40 tokens: the model takes at most 32"):
        influence_scores.run(model(), long, None, None, spec())
    other = TokenBlocks(Blocks(torch.full((2, 4), 99)), data().query, "", "", "")
    with pytest.raises(UserError, match="train: token ids must lie between 0 and 60"):
        influence_scores.run(model(), other, None, None, spec())


def test_batches_are_halved_until_memory_suffices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that fails half-way leaves nothing behind."""
    of, blocks = model(), data()
    expected = scores(of, fit_factors(of, blocks.train, spec()), blocks.query, blocks.train, spec()).total
    take, seen, most = passes.Gradients.take, [], [3]

    def scarce(self: Any, some: Blocks, each: Any, labels: Any = None) -> None:
        seen.append(len(some))

        def fails(number: int, a: torch.Tensor, g: torch.Tensor) -> None:
            each(number, a, g)
            if len(some) > most[0]:
                raise torch.OutOfMemoryError("out of memory")

        take(self, some, fails, labels)

    monkeypatch.setattr(passes.Gradients, "take", scarce)
    given = spec(factor_batch=16, train_batch=7, query_batch=3)
    found = scores(of, fit_factors(of, blocks.train, given), blocks.query, blocks.train, given).total
    assert float((found - expected).abs().max()) < 1e-9 * float(expected.abs().max())
    assert seen[:6] == [16, 8, 4, 2, 2, 2] and 7 in seen
    most[0] = 0
    with pytest.raises(UserError, match=r"analysis.factor_batch: memory does not suffice for one block"):
        fit_factors(of, blocks.train, given)


def test_identities_hold_and_are_able_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {
        "hooks.logits": 0.0, "token.sum": 1e-10, "token.sum.float32": 1e-4, "token.last": 0.0,
        "self.diagonal": 1e-9, "module.sum": 1e-10, "batches": 1e-9, "rank.exact": 1e-8,
        "rank.randomised": 1e-8, "kfac.one_position": 1e-9, "identity.autograd": 1e-10, "dense": 1e-8,
    }  # fmt: skip
    given = InfluenceIdentities.parse({"modules": MODULES, "blocks": 4, "queries": 2}, "analysis")
    found = influence_identities.run(tiny("gpt2"), data(), None, None, given).scalars
    assert found.pop("token.shape") == 1 and found.keys() == limits.keys()
    assert {name for name, limit in limits.items() if found[name] > limit} == set()
    right = scoring.Preconditioned.by_token
    monkeypatch.setattr(scoring.Preconditioned, "by_token", lambda self, a, g: 1.001 * right(self, a, g))
    broken = influence_identities.run(tiny("gpt2"), data(), None, None, given).scalars
    assert broken["token.sum"] > limits["token.sum"]
