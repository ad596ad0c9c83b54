"""A tuned model trained again, from the same start, on some of its blocks: many times, each kept by itself.

<tuned model>/retrained/<hash>/losses.npz has the summed loss of every query after one training. What is there
is not trained again, and one that was interrupted goes on where it was.
"""

from __future__ import annotations

import copy
import hashlib
import io
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from repro import stopping
from repro.data.token_blocks import TokenBlocks
from repro.errors import UserError
from repro.locks import exclusive
from repro.progress import progress
from repro.results import write_atomic
from repro.training import lm_loop
from repro.training.block_source import BlockSource
from repro.training.lm_evaluation import TOKENS
from repro.training.tuned_store import Origin
from repro.training.worker import die_with_parent

FOLDER, LOSSES = "retrained", "losses.npz"


@dataclass(frozen=True)
class Retraining:
    """kept: which training blocks, rising. seed: of the order in which they are seen, and of dropout."""

    kept: tuple[int, ...]
    seed: int

    @property
    def digest(self) -> str:
        """A name for it."""
        text = f"{self.seed}:" + ",".join(map(str, self.kept))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def losses(origin: Origin, wanted: Sequence[Retraining]) -> np.ndarray:
    """Summed loss of every query block after each retraining, [retraining, query], in nats.

    Those not in the store are trained: in processes side by side, or in this one (see `Origin.workers`).
    """
    origin.ensure()
    missing = list(dict.fromkeys(one for one in wanted if not _file(origin, one).exists()))
    with progress(len(missing), "retraining", "models") as bar:
        for _ in _side_by_side(origin, missing) if _worth_it(origin, missing) else _here(origin, missing):
            bar.advance()
    return np.stack([_read(_file(origin, one)) for one in wanted])


def is_done(origin: Origin, one: Retraining) -> bool:
    """Whether a retraining is in the store."""
    return _file(origin, one).exists()


def block_losses(model: Any, tokens: Tensor) -> np.ndarray:
    """Summed cross entropy of blocks [block, position], over all tokens but the first, in nats; [block]."""
    found = []
    at_once = max(1, TOKENS // tokens.shape[1])
    with torch.no_grad():
        for some in tokens.split(at_once):
            some = some.to(model.device)
            logits = model(some, use_cache=False).logits[:, :-1].float()
            each = functional.cross_entropy(logits.transpose(1, 2), some[:, 1:], reduction="none")
            found.append(each.double().sum(1).cpu())
    return torch.cat(found).numpy()


class Trainer:
    """What all retrainings of an origin have in common: the start and the blocks, read once."""

    def __init__(self, origin: Origin) -> None:
        self.origin, self.blocks = origin, origin.blocks()
        self._start, _ = origin.start()
        origin.set_dropout(self._start)

    def train(self, one: Retraining) -> None:
        """Do a retraining, or go on with it; nothing if it is done. Whoever does it is waited for."""
        file = _file(self.origin, one)
        file.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(file.parent / "lock", wait=True):
            if file.exists():
                return
            model = copy.deepcopy(self._start)
            recipe = self.origin.recipe(len(one.kept), one.seed, measured=False)
            kept = self.blocks.train.tokens[list(one.kept)].numpy()
            lm_loop.run(recipe, model, BlockSource(kept), file.parent)
            found = block_losses(model.eval(), self.blocks.query.tokens)
            buffer = io.BytesIO()
            np.savez(buffer, losses=found, kept=np.asarray(one.kept), seed=np.asarray(one.seed))
            write_atomic(file, buffer.getvalue())
            (file.parent / lm_loop.STATE).unlink(missing_ok=True)


def check_kept(blocks: TokenBlocks, kept: np.ndarray) -> None:
    """Refuse masks of another number of blocks. kept: [mask, block]."""
    if kept.shape[1] != len(blocks.train):
        raise UserError(
            f"masks: they are over {kept.shape[1]} training blocks, and the data have {len(blocks.train)}."
            " Masks and scores must be of the same blocks in the same order"
        )


def _file(origin: Origin, one: Retraining) -> Path:
    return origin.folder / FOLDER / one.digest / LOSSES


def _read(file: Path) -> np.ndarray:
    with np.load(file) as arrays:
        return arrays["losses"]


def _worth_it(origin: Origin, missing: Sequence[Retraining]) -> bool:
    return origin.workers > 1 and len(missing) > 1


def _here(origin: Origin, missing: Sequence[Retraining]) -> Iterator[Retraining]:
    if missing:
        trainer = Trainer(origin)
        for one in missing:
            trainer.train(one)
            yield one


def _side_by_side(origin: Origin, missing: Sequence[Retraining]) -> Iterator[Retraining]:
    """In processes of their own, each with one thread: small models are fastest so."""
    workers = min(origin.workers, len(missing))
    with _pool(workers, origin) as pool:
        with stopping.held():  # until a worker listens itself, a signal would end it
            futures = {pool.submit(_work, one): one for one in missing}
        try:
            for done in as_completed(futures):
                done.result()
                yield futures[done]
        except BrokenProcessPool:
            if stopping.asked() == "stop":
                raise stopping.Stopped from None
            raise UserError(
                "retraining: a process was ended from outside (out of memory?). What was trained is saved;"
                " the same command goes on from there"
            ) from None


@contextmanager
def _pool(workers: int, origin: Origin) -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _begin, (origin,))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_trainer: Trainer | None = None


def _begin(origin: Origin) -> None:
    global _trainer
    die_with_parent()
    stopping.listen_as_child()
    torch.set_num_threads(1)
    _trainer = Trainer(origin)


def _work(one: Retraining) -> None:
    assert _trainer is not None
    _trainer.train(one)
