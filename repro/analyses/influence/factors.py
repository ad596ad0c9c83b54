"""Curvature of a model: fitted in stages, each resumable, and applied to gradients.

Grosse et al. 2023 (arXiv 2308.03296), George et al. 2018 (arXiv 1806.03884). With Q the eigenvectors of the
covariances of inputs (A) and output gradients (S), P(G) = Q_S [(Q_S' G Q_A) / (L + damping)] Q_A', where
L = mean over blocks of (Q_S' G_n Q_A)^2 for ekfac and the products of eigenvalues for kfac; diagonal:
P(G) = G / (mean of G_n^2 + damping); identity: P(G) = G.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repro.analyses.influence import algebra, saved
from repro.analyses.influence.curvature import covariance_sums, decomposed, square_sums
from repro.analyses.influence.modules import Tracked, tracked_modules
from repro.analyses.influence.passes import computed_in, in_batches, not_finite, precision, uniforms
from repro.analyses.influence.profile import Profile
from repro.analyses.influence.saved import Tensors
from repro.analyses.influence_specs import MANIFEST, InfluenceAnalysis
from repro.data.token_blocks import Blocks
from repro.errors import UserError
from repro.models.language_model import LanguageModel
from repro.progress import progress
from repro.shards import Part

TOKENS = 2**18  # of a partition, if nothing else is asked for
HEURISTIC = 0.1  # damping as a share of the mean eigenvalue (Grosse et al., appendix)


@dataclass(frozen=True)
class Factors:
    """What a strategy needs, by module: eigenvectors QA, QS, eigenvalues DA, DS; mean squares L."""

    strategy: str
    tracked: Sequence[Tracked]
    fingerprint: dict[str, Any] = field(default_factory=dict)
    eigen: Tensors = field(default_factory=dict)
    squares: Tensors = field(default_factory=dict)

    def eigenvalues(self, one: Tracked) -> Tensor:
        """L of a module, [outputs, inputs]."""
        if self.strategy == "kfac":
            return torch.outer(self.eigen[f"DS.{one.name}"], self.eigen[f"DA.{one.name}"])
        return self.squares[f"L.{one.name}"] / self.squares["count"]

    def curvature(self, one: Tracked, settings: InfluenceAnalysis, device: Any) -> Curvature:
        """What gradients of one module are preconditioned with. Raises `UserError` if it is singular."""
        kind = torch.float32 if settings.gentle else computed_in(settings)
        if self.strategy == "identity":
            return Curvature(kind, None, None, None)
        inverse = _inverse(self, one, settings).to(device, kind)
        if self.strategy == "diagonal":
            return Curvature(kind, inverse, None, None)
        left, right = (self.eigen[f"{name}.{one.name}"].to(device, kind) for name in ("QS", "QA"))
        return Curvature(kind, inverse, left, right)


@dataclass(frozen=True)
class Curvature:
    """Of one module, where it is used. inverse: 1 / (L + damping), [outputs, inputs]."""

    kind: torch.dtype
    inverse: Tensor | None
    left: Tensor | None
    right: Tensor | None

    def rotated(self, a: Tensor, g: Tensor, inputs: int) -> Tensor:
        """Gradients of blocks in the basis in which the curvature is diagonal, [B, outputs, inputs]."""
        a, g = a.to(self.kind), g.to(self.kind)
        if self.left is None or self.right is None:
            return algebra.gradients(a, g, inputs)
        return algebra.rotated_gradients(a, g, self.left, self.right)

    def precondition(self, rotated: Tensor) -> Tensor:
        """P(G) of gradients in that basis."""
        found = rotated if self.inverse is None else rotated * self.inverse
        if self.left is None or self.right is None:
            return found
        return self.left @ found @ self.right.T


def _inverse(factors: Factors, one: Tracked, settings: InfluenceAnalysis) -> Tensor:
    """1 / (L + damping) in float64, [outputs, inputs]."""
    values = factors.eigenvalues(one).double()
    damping = HEURISTIC * float(values.mean()) if settings.damping == "heuristic" else settings.damping
    if damping == 0:
        _refuse_singular(factors, one, values)
    inverse = 1 / (values + damping)
    if not bool(torch.isfinite(inverse).all()):
        raise UserError(
            f"{one.name}: an eigenvalue plus the damping of {damping:g} is 0. Give analysis.damping=heuristic"
        )
    return inverse


def _refuse_singular(factors: Factors, one: Tracked, values: Tensor) -> None:
    """Without damping no direction may be flat, up to rounding."""
    small, smallest = "", float(values.min())
    if smallest <= 0:
        small = f"its smallest eigenvalue is {smallest:.1e}"
    for name, what in (("DA", "inputs"), ("DS", "output gradients")):
        if factors.strategy == "diagonal":
            break
        side = factors.eigen[f"{name}.{one.name}"]
        floor = len(side) * torch.finfo(side.dtype).eps * float(side.max())
        if float(side.min()) <= floor:
            rank = int((side > floor).sum())
            small = f"the covariance of its {what} has rank {rank} of {len(side)}"
    if small:
        raise UserError(
            f"analysis.damping=0: the curvature of {one.name} is singular: {small}. Give"
            " analysis.damping=1e-8 (or heuristic), or more training blocks"
        )


def fit_factors(
    model: LanguageModel, train: Blocks, settings: InfluenceAnalysis, store: Path | None = None,
    profile: Profile | None = None, least_partitions: int = 1,
) -> Factors:  # fmt: skip
    """Fit what the strategy of the settings needs, on all training blocks.

    store: factors lie in <store>/<fingerprint>/, one file a stage; a stage that is there is read. Processes
    with one store share the work out, in partitions of the training blocks, at least `least_partitions`.
    Raises `UserError` for modules, blocks and labels that do not go together, and for numbers not finite.
    """
    tracked = tracked_modules(model, settings.modules)
    train = train.rows(slice(0, settings.factor_examples))
    if settings.strategy == "identity":
        return Factors("identity", tracked, {"strategy": "identity", "model": saved.weights_checksum(model)})
    return _Fit(model, tracked, train, settings, store, profile or Profile(), least_partitions).factors()


class _Fit:
    def __init__(
        self, model: LanguageModel, tracked: Sequence[Tracked], train: Blocks, settings: InfluenceAnalysis,
        store: Path | None, profile: Profile, least: int,
    ) -> None:  # fmt: skip
        _check_labels(train, settings)
        self.model, self.tracked, self.train, self.settings = model, tracked, train, settings
        self.profile, self.partitions = profile, partitions_of(train, settings, least)
        self.fingerprint = saved.fingerprint(model, tracked, train, settings)
        self.folder = None if store is None else store / saved.digest(self.fingerprint)
        self.fixed = settings.factors_path is not None
        if settings.factors_path is not None:
            self.folder = _only_folder(Path(settings.factors_path).expanduser())
            saved.check(self.folder, self.fingerprint)
        elif self.folder is not None:
            saved.opened(self.folder, self.fingerprint)

    def factors(self) -> Factors:
        strategy = self.settings.strategy
        with precision(self.model, self.settings.dtype):
            if strategy == "diagonal":
                return Factors(strategy, self.tracked, self.fingerprint, squares=self._squares(None))
            eigen = self._eigen()
            squares = self._squares(eigen) if strategy == "ekfac" else {}
        return Factors(strategy, self.tracked, self.fingerprint, eigen, squares)

    def _eigen(self) -> Tensors:
        folder = self._place("eigen")
        there = folder is not None and (folder / "eigen.safetensors").exists()
        # Before the lock of the decomposition is taken, so that processes share the sums out.
        sums = {} if there else self._summed("covariance", covariance_sums, "fit_covariance")

        def compute(index: int) -> Tensors:
            with self.profile.stage("eigendecomposition"):
                return decomposed(sums, self.tracked, self.settings)

        return saved.summed(folder, "eigen", 1, compute, *self._timed("eigen"))

    def _squares(self, eigen: Tensors | None) -> Tensors:
        stage = "diagonal" if eigen is None else "lambda"
        found = self._summed(stage, partial(square_sums, eigen=eigen), "fit_lambda")
        for one in self.tracked:
            if not bool(torch.isfinite(found[f"L.{one.name}"]).all()):
                raise not_finite(f"the squared gradient of {one.name}")
        return found

    def _summed(self, stage: str, sums: Callable[..., Tensors], timed: str) -> Tensors:
        """A sum over blocks, in partitions of blocks and modules."""
        labels = self._labels(stage)
        groups = module_groups(self.tracked, self.settings)

        def compute(index: int) -> Tensors:
            rows = torch.tensor(Part(index, self.partitions).of(range(len(self.train))))
            blocks, here = self.train.rows(rows), None if labels is None else labels[rows]
            found: Tensors = {}
            with self.profile.stage(timed):
                for some in groups:
                    with progress(len(rows), timed.replace("_", " "), "blocks") as bar:

                        def work(batch: int, some: Any = some, bar: Any = bar) -> Tensors:
                            return sums(self.model, some, blocks, here, self.settings, batch=batch, bar=bar)

                        found.update(
                            in_batches(self.settings.factor_batch, blocks.length, work, "factor_batch")
                        )
            return found

        return saved.summed(self._place(stage), stage, self.partitions, compute, *self._timed(stage))

    def _place(self, stage: str) -> Path | None:
        """The folder. Raises `UserError` if it is given and lacks a stage."""
        if self.fixed and self.folder is not None and not (self.folder / f"{stage}.safetensors").exists():
            raise UserError(
                f"analysis.factors_path: {self.folder} has no {stage}.safetensors, which strategy"
                f" {self.settings.strategy} needs. Fit it first: give the same command without"
                " analysis.factors_path"
            )
        return self.folder

    def _timed(self, stage: str) -> tuple[Callable[[Path], Tensors], Callable[[Path, Tensors], None]]:
        name = {"diagonal": "lambda", "eigen": "eigendecomposition"}.get(stage, stage)

        def reading(path: Path) -> Tensors:
            with self.profile.stage(f"load_{name}"):
                return saved.read(path)

        def writing(path: Path, tensors: Tensors) -> None:
            with self.profile.stage(f"save_{name}"):
                saved.save(path, tensors)

        return reading, writing

    def _labels(self, stage: str) -> Tensor | None:
        if self.settings.fisher == "sampled":
            return uniforms(self.settings.seed, stage, *self.train.tokens.shape)
        return self.train.labels if self.settings.fisher == "given" else None


def module_groups(tracked: Sequence[Tracked], settings: InfluenceAnalysis) -> list[list[Tracked]]:
    """Modules that are looked at in one pass."""
    count = min(settings.module_partitions, len(tracked))
    return [Part(index, count).of(tracked) for index in range(count)]


def partitions_of(train: Blocks, settings: InfluenceAnalysis, least: int) -> int:
    """Into how many parts the blocks are cut. Raises `UserError` if that is more than there are blocks."""
    if settings.partitions != "auto" and settings.partitions > len(train):
        raise UserError(
            f"analysis.partitions: got {settings.partitions}, and there are only {len(train)} training blocks"
            f" to fit factors on. Give analysis.partitions={len(train)} or less, or more blocks"
        )
    wanted = train.tokens.numel() // TOKENS if settings.partitions == "auto" else settings.partitions
    return min(max(1, wanted, least), len(train))


def _check_labels(train: Blocks, settings: InfluenceAnalysis) -> None:
    if settings.fisher == "given" and train.labels is None:
        raise UserError(
            "analysis.fisher=given: the data have no fisher_labels. Give them in the file (fisher_labels[n,"
            " T-1]), or choose analysis.fisher=sampled or empirical"
        )


def _only_folder(path: Path) -> Path:
    return path if (path / MANIFEST).exists() else next(iter(path.glob(f"*/{MANIFEST}"))).parent
