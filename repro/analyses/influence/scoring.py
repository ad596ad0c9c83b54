"""Influence scores: how much weight on a training block lowers a query's measurement, to first order.

s[q, n] = sum over modules of <P(G_q), G_n> (Grosse et al. 2023, eq. 24 and section 3). Nothing is divided by
a number of blocks or tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from repro.analyses.influence import saved
from repro.analyses.influence.algebra import Preconditioned, low_rank
from repro.analyses.influence.factors import Curvature, Factors, module_groups, partitions_of
from repro.analyses.influence.modules import Tracked
from repro.analyses.influence.passes import Gradients, computed_in, in_batches, not_finite, precision
from repro.analyses.influence.profile import Profile
from repro.analyses.influence.saved import Tensors
from repro.analyses.influence_specs import InfluenceAnalysis
from repro.data.token_blocks import Blocks
from repro.models.language_model import LanguageModel
from repro.progress import Progress, progress
from repro.shards import Part

QUERIES = 32  # of a batch, and in memory together at least, as published
ROOM = 2 * 2**30  # bytes of query gradients on a CPU, if more of them fit in
GPU_SHARE = 0.4  # of the memory that a GPU has beside the model


@dataclass(frozen=True)
class Scores:
    """total: the sum over modules. The last position of every block carries nothing: its score is 0."""

    modules: list[str]
    total: Float[Tensor, "query block"]
    per_module: Float[Tensor, "module query block"] | None
    per_token: Float[Tensor, "query block position"] | None


def scores(
    model: LanguageModel, factors: Factors, queries: Blocks, train: Blocks, settings: InfluenceAnalysis,
    store: Path | None = None, profile: Profile | None = None,
) -> Scores:  # fmt: skip
    """Influence of every training block on every query (on their sum with `sum_queries`: one row).

    store: a folder where parts are saved on the way and found again after an interruption.
    """
    return _Scoring(model, factors, queries, train, settings, store, profile or Profile()).all()


def self_influence(
    model: LanguageModel, factors: Factors, train: Blocks, settings: InfluenceAnalysis,
    profile: Profile | None = None,
) -> Float[Tensor, " block"]:  # fmt: skip
    """<P(M_n), G_n> of each training block, M_n being the gradient of its own measurement (the loss: G_n).

    In the basis of the curvature it is the sum of the products of entries over L + damping, so nothing is
    rotated back.
    """
    total = torch.zeros(len(train), dtype=_kept(settings))
    with precision(model, settings.dtype), (profile or Profile()).stage("self_score"):
        for some in module_groups(factors.tracked, settings):
            curvatures = [factors.curvature(one, settings, one.device) for one in some]
            with progress(len(train), "self-influence", "blocks") as bar:

                def work(
                    batch: int, some: Any = some, curvatures: Any = curvatures, bar: Any = bar
                ) -> Tensor:
                    return _self_scores(model, some, curvatures, train, settings, batch, bar)

                total += in_batches(settings.train_batch, train.length, work, "train_batch")
    _check_finite(total)
    return total


def _self_scores(
    model: LanguageModel, some: Sequence[Tracked], curvatures: Sequence[Curvature], train: Blocks,
    settings: InfluenceAnalysis, batch: int, bar: Progress,
) -> Tensor:  # fmt: skip
    found = torch.zeros(len(train), dtype=_kept(settings), device=model.device)
    plain = settings.measurement == "loss"
    for rows in torch.arange(len(train)).split(batch):
        measured: dict[int, Tensor] = {}

        def left(number: int, a: Tensor, g: Tensor, measured: dict[int, Tensor] = measured) -> None:
            measured[number] = curvatures[number].rotated(a, g, some[number].inputs)

        def each(
            number: int, a: Tensor, g: Tensor, measured: dict[int, Tensor] = measured, rows: Tensor = rows
        ) -> None:
            of = curvatures[number]
            rotated = of.rotated(a, g, some[number].inputs)
            weighted = rotated if of.inverse is None else rotated * of.inverse
            other = rotated if plain else measured.pop(number)
            found[rows] += (weighted.flatten(1)[:, None] @ other.flatten(1)[..., None])[:, 0, 0].to(
                found.dtype
            )

        if not plain:
            Gradients(model, some, settings, measured=True).take(train.rows(rows), left)
        Gradients(model, some, settings).take(train.rows(rows), each)
        bar.advance(len(rows))
    return found.cpu()


class _Scoring:
    def __init__(
        self, model: LanguageModel, factors: Factors, queries: Blocks, train: Blocks,
        settings: InfluenceAnalysis, store: Path | None, profile: Profile,
    ) -> None:  # fmt: skip
        self.model, self.factors, self.queries, self.train = model, factors, queries, train
        self.settings, self.profile, self.partitions = settings, profile, partitions_of(train, settings, 1)
        self.folder = None if store is None else store / saved.digest(self._fingerprint())

    def _fingerprint(self) -> dict[str, Any]:
        blocks = {name: saved.blocks_checksum(getattr(self, name)) for name in ("queries", "train")}
        return {"factors": self.factors.fingerprint, **blocks, "settings": self.settings.fingerprint(),
                "partitions": self.partitions, "groups": len(self._groups())}  # fmt: skip

    def all(self) -> Scores:
        found = []
        with precision(self.model, self.settings.dtype):
            for number, some in enumerate(module_groups(self.factors.tracked, self.settings)):
                rows = [self._of_queries(f"{number}.{i}", some, at) for i, at in enumerate(self._groups())]
                found.append(
                    {name: torch.cat([row[name] for row in rows], -self._after(name)) for name in rows[0]}
                )
        total = {
            name: torch.stack([part[name] for part in found]).sum(0) if len(found) > 1 else found[0][name]
            for name in found[0]
            if name != "per_module"
        }
        modules = torch.cat([part["per_module"] for part in found]) if self.settings.per_module else None
        if modules is not None:
            total["total"] = modules.sum(0)
        _check_finite(total["total"])
        if self.folder is not None:
            for path in self.folder.glob("*.safetensors"):
                path.unlink(missing_ok=True)
        names = [one.name for one in self.factors.tracked]
        return Scores(names, total["total"], modules, total.get("per_token"))

    @staticmethod
    def _after(name: str) -> int:
        """Place of the axis of queries, from the end."""
        return 3 if name == "per_token" else 2

    def _groups(self) -> list[Tensor]:
        """Queries whose preconditioned gradients are in memory together, for one pass over the blocks."""
        count, settings = len(self.queries), self.settings
        if settings.sum_queries:
            return [torch.arange(count)]
        batch = QUERIES if settings.query_batch == "auto" else settings.query_batch
        if settings.query_accumulation != "auto":
            return list(torch.arange(count).split(batch * settings.query_accumulation))
        size = sum(_kept_numbers(one, settings.rank) for one in self.factors.tracked)
        room = float(ROOM)
        if (device := self.model.device).type == "cuda":
            there = torch.cuda.get_device_properties(device).total_memory
            room = GPU_SHARE * (there - torch.cuda.memory_allocated(device))
        fit = int(room // (size * computed_in(settings).itemsize / settings.module_partitions))
        return list(torch.arange(count).split(max(QUERIES, fit)))

    def _of_queries(self, name: str, some: Sequence[Tracked], at: Tensor) -> Tensors:
        """Scores of one group of queries and modules on all training blocks."""
        paths = [
            None if self.folder is None else self.folder / f"{name}.{i}.safetensors"
            for i in range(self.partitions)
        ]
        ready: list[Preconditioned] = []
        found = []
        for index, path in enumerate(paths):
            if path is not None and path.exists():
                found.append(saved.read(path))
                continue
            rows = torch.tensor(Part(index, self.partitions).of(range(len(self.train))))
            with self.profile.stage("pairwise_score"):
                ready = ready or self._preconditioned(some, at)
                part = self._partition(some, ready, self.train.rows(rows))
            if path is not None:
                with self.profile.stage("save_pairwise_score"):
                    saved.save(path, part)
            found.append(part)
        axis = {"total": 1, "per_module": 2, "per_token": 1}
        return {key: torch.cat([part[key] for part in found], axis[key]) for key in found[0]}

    def _preconditioned(self, some: Sequence[Tracked], at: Tensor) -> list[Preconditioned]:
        curvatures = [self.factors.curvature(one, self.settings, one.device) for one in some]
        size, length = self.settings.query_batch, self.queries.length

        def work(batch: int) -> list[Preconditioned]:
            return self._precondition(some, curvatures, at, batch)

        return in_batches(size, length, work, "query_batch")

    def _precondition(
        self, some: Sequence[Tracked], curvatures: Sequence[Curvature], at: Tensor, batch: int
    ) -> list[Preconditioned]:
        parts: list[list[Preconditioned]] = [[] for _ in some]
        sums: list[Tensor | None] = [None for _ in some]
        settings, last = self.settings, False

        def each(number: int, a: Tensor, g: Tensor) -> None:
            if settings.sum_queries:
                a, g = a.flatten(0, 1)[None], g.flatten(0, 1)[None]
            rotated, held = curvatures[number].rotated(a, g, some[number].inputs), sums[number]
            if settings.sum_queries:
                sums[number] = rotated = rotated if held is None else held + rotated
                if not last:
                    return
            whole = curvatures[number].precondition(rotated).to(computed_in(settings))
            parts[number].append(self._made(some[number], whole))

        passes = Gradients(self.model, some, settings, measured=True)
        batches = at.split(batch)
        for rows in batches:
            last = rows is batches[-1]
            passes.take(self.queries.rows(rows), each)
        joined = []
        while parts:  # one module after the other, so that no two copies of all are there at a time
            joined.append(Preconditioned.joined(parts.pop(0)))
        return joined

    def _made(self, one: Tracked, whole: Tensor) -> Preconditioned:
        rank, number = self.settings.rank, list(self.factors.tracked).index(one)
        if rank is None or rank >= min(one.outputs, one.inputs):
            return Preconditioned(one, whole)
        factors = low_rank(whole, rank, self.settings.svd == "exact", self.settings.seed + number)
        return Preconditioned(one, None, factors)

    def _partition(self, some: Sequence[Tracked], ready: Sequence[Preconditioned], train: Blocks) -> Tensors:
        with progress(len(train), f"scores of {len(ready[0])} queries", "blocks") as bar:

            def work(batch: int) -> Tensors:
                return self._scored(some, ready, train, batch, bar)

            return in_batches(self.settings.train_batch, train.length, work, "train_batch")

    def _scored(
        self, some: Sequence[Tracked], ready: Sequence[Preconditioned], train: Blocks, batch: int,
        bar: Progress,
    ) -> Tensors:  # fmt: skip
        settings, kept, device = self.settings, _kept(self.settings), self.model.device
        shape = (len(ready[0]), len(train))
        by_module = settings.per_module
        total = torch.zeros(((len(some),) if by_module else ()) + shape, dtype=kept, device=device)
        tokens = torch.zeros(*shape, train.length, dtype=kept) if settings.per_token else None
        here = torch.empty(0)

        def each(number: int, a: Tensor, g: Tensor) -> None:
            if tokens is None:
                score = ready[number].scores(a, g)
            else:
                each_token = ready[number].by_token(a[:, :-1], g[:, :-1])  # g is 0 at the last position
                here.add_(each_token.to(here))
                score = each_token.to(kept).sum(-1)
            if by_module:
                total[number, :, rows] = score.to(total)
            else:
                total[:, rows] += score.to(total)

        passes = Gradients(self.model, some, settings)
        for rows in torch.arange(len(train)).split(batch):
            if tokens is not None:
                here = torch.zeros(shape[0], len(rows), train.length - 1, dtype=kept, device=device)
            passes.take(train.rows(rows), each)
            if tokens is not None:
                tokens[:, rows, :-1] = here.cpu()
            bar.advance(len(rows))
        found = {"per_module" if by_module else "total": total.cpu()}
        return found if tokens is None else {**found, "per_token": tokens}


def _kept(settings: InfluenceAnalysis) -> torch.dtype:
    """Of scores as they are summed and saved: half precision is that of products only."""
    return torch.float64 if settings.dtype == "float64" else torch.float32


def _kept_numbers(one: Tracked, rank: int | None) -> int:
    cut = rank is not None and rank < min(one.outputs, one.inputs)
    return rank * (one.outputs + one.inputs) if cut and rank is not None else one.entries


def _check_finite(total: Tensor) -> None:
    if not bool(torch.isfinite(total).all()):
        raise not_finite("a score")
