"""How well a model predicts the queries, and how it came to.

Source: kronfluence's examples/wikitext (fine-tuning and evaluation); Grosse et al. 2023 for the modules.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from repro.analyses import lm_inputs as lm
from repro.analyses.influence.api import tracked_modules
from repro.analyses.influence_scores import blocks_of
from repro.analyses.tuning_specs import TextTraining
from repro.results import NamedArray, Result
from repro.training import lm_store
from repro.training.retraining import block_losses


def run(subject: Any, data: Any, record: Any, directory: Path | None, spec: TextTraining) -> Result:
    """Losses of the queries, and of training if the model was tuned here.

    Arrays: query_loss [query], summed over a block, in nats; of a tuned model train_loss [step], a batch's
    mean a token, and tuning_steps, tuning_loss, tuning_perplexity [point] of all queries, after every epoch
    and before. Scalars: perplexity.all, perplexity.first (of the first `first` queries), perplexity.start
    (before tuning), blocks.train, blocks.query, blocks.length, tracked.modules and tracked.entries (gradient
    entries, bias included) of the modules that influence functions look at.
    """
    model = lm.model_of(subject)
    blocks = blocks_of(model, data)
    found = block_losses(model.hf, blocks.query.tokens)
    predicted = blocks.query.length - 1
    tracked = tracked_modules(model, None)
    scalars = {
        "perplexity.all": math.exp(found.mean() / predicted),
        "perplexity.first": math.exp(found[: spec.first].mean() / predicted),
        "blocks.train": len(blocks.train),
        "blocks.query": len(blocks.query),
        "blocks.length": blocks.train.length,
        "tracked.modules": len(tracked),
        "tracked.entries": sum(one.outputs * one.inputs for one in tracked),
    }
    arrays = {"query_loss": NamedArray(found, {"query": len(found)}, "nat")}
    if model.origin is not None:
        arrays.update(_history(model.origin.folder / lm_store.HISTORY))
        scalars["perplexity.start"] = float(arrays["tuning_perplexity"].values[0])
    notes = {"blocks": f"{blocks.source}: {len(blocks.train)} x {blocks.train.length} tokens"}
    return Result({name: float(value) for name, value in scalars.items()}, arrays, notes)


def _history(file: Path) -> dict[str, NamedArray]:
    with np.load(file) as saved:
        train, points, loss = saved["train_loss"], saved["points"], saved["eval_query_loss"]
    at: dict[str, Any] = {"point": len(points)}
    return {
        "train_loss": NamedArray(train, {"step": len(train)}, "nat"),
        "tuning_steps": NamedArray(points, at, "steps"),
        "tuning_loss": NamedArray(loss, at, "nat"),
        "tuning_perplexity": NamedArray(np.exp(loss), at, "1"),
    }
