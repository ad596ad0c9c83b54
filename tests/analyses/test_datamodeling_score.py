"""The linear datamodeling score: 1, -1 and by hand where the answer is known; masks; what files may give."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from training import tuned_cases

from repro.analyses.datamodeling_score import drawn, merge, retrainings, run, run_part
from repro.analyses.influence_study_specs import DatamodelingScore
from repro.analyses.influence_variants import spearman
from repro.data import array_files, corpus
from repro.errors import NotApplicable, UserError
from repro.results import NamedArray, Result
from repro.shards import Part

NAMES = {"variants": {"identity": {"strategy": "identity"}}}


def spec(**values: Any) -> DatamodelingScore:
    return DatamodelingScore.parse({**NAMES, "masks": 4, "repeats": 2, **values}, "analysis")


def constructed(scores: np.ndarray, masks: np.ndarray, losses: np.ndarray) -> Result:
    """A part as `run_part` gives it. scores: [query, train]; losses: [mask, query]."""
    queries, train = scores.shape
    arrays = {
        "scores": NamedArray(scores[None], {"variant": ["identity"], "query": queries, "train": train}),
        "masks": NamedArray(masks.astype(np.int8), {"mask": len(masks), "train": train}),
        "mean_losses": NamedArray(losses, {"mask": len(masks), "query": queries}, "nat"),
    }
    return Result({"predicted": 15.0}, arrays, {"blocks": ""})


@pytest.mark.parametrize("sign", [1, -1])
def test_it_is_one_where_losses_fall_with_the_scores_of_what_is_kept(sign: int) -> None:
    """Losses are any falling function of the sum of scores, whatever the scores are."""
    random = np.random.default_rng(0)
    scores, masks = random.normal(size=(3, 10)), drawn(10, spec(masks=12))
    losses = np.exp(-sign * 0.3 * (masks @ scores.T)) + np.array([1.0, 5.0, 9.0])
    found = merge([constructed(scores, masks, losses)], spec())
    np.testing.assert_allclose(found.arrays["lds"].values, [[sign] * 3], atol=1e-12)
    assert found.scalars["lds.identity"] == pytest.approx(sign)


def test_ranks_are_spearmans() -> None:
    random = np.random.default_rng(1)
    left, right = random.integers(0, 5, (4, 30)), random.normal(size=(4, 30))
    expected = [spearmanr(one, other)[0] for one, other in zip(left, right, strict=True)]
    np.testing.assert_allclose(spearman(left, right), expected, atol=1e-12)
    assert np.isnan(spearman(np.ones(5), np.arange(5.0)))


def test_masks_keep_the_same_number_and_all_differ() -> None:
    masks = drawn(16, spec(masks=50))
    assert masks.shape == (50, 16) and set(masks.sum(1)) == {8} and len(np.unique(masks, axis=0)) == 50
    assert np.array_equal(masks[:10], drawn(16, spec(masks=10)))
    assert set(drawn(16, spec(share=0.25)).sum(1)) == {4}
    assert len(drawn(4, spec(masks=6))) == 6  # all there are
    with pytest.raises(UserError, match="no 7 different masks with 2 of them"):
        drawn(4, spec(masks=7))


def test_retrainings_are_mask_by_mask_with_seeds_of_their_own() -> None:
    wanted = retrainings(np.array([[1, 0, 1], [0, 1, 1]]), 2)
    assert [(one.kept, one.seed) for one in wanted] == [((0, 2), 0), ((0, 2), 1), ((1, 2), 2), ((1, 2), 3)]


def test_shards_share_retrainings_and_scores(tmp_path: Path) -> None:
    model = tuned_cases.model(tmp_path)
    data, asked = corpus.load(model.origin.spec.text), spec()
    whole = run(model, data, None, None, asked)
    parts = [run_part(model, data, None, asked, Part(index, 3)) for index in range(3)]
    split = merge(parts, asked)
    assert whole.arrays["losses"].values.shape == (4, 2, 4)
    for name, array in whole.arrays.items():
        np.testing.assert_allclose(split.arrays[name].values, array.values, rtol=1e-5, atol=1e-4)
        assert split.arrays[name].axes == array.axes
    losses = whole.arrays["losses"].values
    by_hand = np.mean([spearmanr(losses[:, 0, one], losses[:, 1, one])[0] for one in range(4)])
    assert whole.scalars["split_half"] == pytest.approx(by_hand)
    assert whole.scalars["masks.kept_least"] == whole.scalars["masks.kept_most"] == 12
    # The same masks and losses from files need no training, and give the same score.
    np.save(tmp_path / "masks.npy", whole.arrays["masks"].values)
    np.save(tmp_path / "losses.npy", whole.arrays["mean_losses"].values)
    given = spec(masks_path=str(tmp_path / "masks.npy"), losses_path=str(tmp_path / "losses.npy"))
    found = run(model, data, None, None, given)
    assert found.scalars["lds.identity"] == pytest.approx(whole.scalars["lds.identity"])
    assert "split_half" not in found.scalars
    np.save(tmp_path / "losses.npy", np.zeros((4, 3)))
    with pytest.raises(UserError, match=r"expected \[mask, 24 training blocks\] and \[mask, 4 queries\]"):
        run(model, data, None, None, given)
    with pytest.raises(NotApplicable, match="analysis.masks_path=masks.pt"):
        run(model, data, None, None, spec(given=True))
    model.origin = None
    with pytest.raises(UserError, match="needs its start. Give model=text_organism"):
        run(model, data, None, None, asked)


def test_losses_belong_to_masks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give both or neither"):
        spec(masks_path="masks.npy")
    with pytest.raises(UserError, match=r"analysis.variants.x.damp: unknown key"):
        spec(variants={"x": {"damp": 1}})
    assert (
        spec().items(lambda name: {"model": tuned_cases.spec()}) == 8
        and spec(given=True).items(lambda name: {}) is None
    )


class Evil:
    """What a pickle may hold."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("run",))


def test_pickles_are_read_by_an_allow_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    array = np.arange(6, dtype=np.int8).reshape(2, 3)
    for name, content in {"int8": array, "float": array.astype(np.float32), "torch": torch.ones(2)}.items():
        torch.save(content, tmp_path / f"{name}.pt")
        assert np.array_equal(array_files.read(str(tmp_path / f"{name}.pt"), "x"), np.asarray(content))
    torch.save(Evil(), tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "damaged.npy").write_bytes(b"no array")
    np.save(tmp_path / "objects.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    for name in ("evil.pt", "plain.pt", "damaged.npy", "objects.npy"):
        with pytest.raises(UserError, match="cannot be read safely"):
            array_files.read(str(tmp_path / name), "analysis.masks_path")
    assert "run" not in capsys.readouterr().out
    torch.save({"a": torch.ones(2)}, tmp_path / "mapping.pt")
    with pytest.raises(UserError, match="expected one array of numbers, got dict"):
        array_files.read(str(tmp_path / "mapping.pt"), "x")
    for name, says in {"none.npy": "no such file", "x.csv": "Valid: .npy, .pt"}.items():
        if name == "x.csv":
            (tmp_path / name).write_text("1")
        with pytest.raises(UserError, match=says):
            array_files.read(str(tmp_path / name), "x")
