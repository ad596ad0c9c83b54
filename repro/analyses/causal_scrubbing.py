"""Causal scrubbing of a language model on prompts with an answer and a wrong token.

Score: recovered = (scrubbed - base) / (model - base), of the mean logit difference and mean loss;
base: nothing of the reference prompt is kept (every input is drawn anew). Source: Redwood Research.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repro.analyses import lm_inputs as lm
from repro.analyses.scrub_specs import CausalScrubbing, Claimed, HypothesisSpec, SamplerSpec
from repro.data.token_batch import TokenBatch
from repro.data.token_pairs import PromptPairs
from repro.errors import UserError
from repro.interventions.path_patching_nodes import parse_sender
from repro.interventions.scrub_draws import Draw, Hypothesis, Node, Sampler, Table, draw
from repro.interventions.scrubbing import Scrubber
from repro.models.language_model import LanguageModel
from repro.progress import progress
from repro.results import Result

MEASURES = ("logit_difference", "loss")
# What samplers may hold fixed, and what it is called in a prompt.
FEATURES = {
    "IO": "io", "S": "s2", "order": "order", "first": "first", "second": "second", "template": "template",
    "place": "place", "object": "object",
}  # fmt: skip


def run(subject: Any, data: Any, record: Any, directory: Path | None, spec: CausalScrubbing) -> Result:
    """Scrub under every hypothesis.

    Arrays [hypothesis, sample]: logit_difference and loss (nats, of the answer among all tokens); baseline
    [sample] of both for the model as it is (model_...) and with nothing kept (base_...). Scalars a
    hypothesis: <name>.logit_difference, .logit_difference.se, .loss, .recovered (of the logit difference),
    .recovered_loss; model.logit_difference, base.logit_difference, model.loss, base.loss.
    """
    model, pairs = lm.model_of(subject), None
    pairs = lm.pairs_of(model, data)
    prompts, positions = table_of(pairs)
    table = Table(len(pairs), _features(data))
    named = {
        name: hypothesis_of(item, f"analysis.hypotheses.{name}") for name, item in spec.hypotheses.items()
    }
    found: dict[str, np.ndarray] = {}
    with progress(len(named) + 1, "hypotheses") as bar:
        for name, hypothesis in named.items():
            scrubber = Scrubber(model, prompts, positions, hypothesis, spec.batch)
            draws = draw(hypothesis, table, spec.samples, spec.seed)
            found[name] = measure(scrubber, draws, pairs, spec)
            bar.advance(1)
        model_values, base_values = _ends(model, prompts, positions, pairs, table, spec)
        bar.advance(1)
    return _result(found, model_values, base_values)


def measure(
    scrubber: Scrubber, draws: dict[str, Draw], pairs: PromptPairs, spec: CausalScrubbing
) -> np.ndarray:
    """Logit difference and loss of every sample, [2, samples]."""
    root = draws[""]
    labels = root.own if spec.labels == "reference" else root.other
    parts = []
    for rows in lm.chunks(spec.samples, spec.batch):
        stream = scrubber.final_stream(draws, rows)
        parts.append(_score(scrubber.model, stream, pairs, torch.as_tensor(labels[rows]) % len(pairs)))
    return torch.cat(parts, dim=1).numpy()


def table_of(pairs: PromptPairs) -> tuple[TokenBatch, dict[str, Tensor]]:
    """Clean prompts and then their twins as one batch, and the columns of the positions that both have."""
    clean, corrupt = pairs.clean, pairs.corrupt
    if clean.tokens.shape[1] != corrupt.tokens.shape[1]:
        raise UserError(
            "causal scrubbing: clean and corrupt prompts must have the same length; got"
            f" {clean.tokens.shape[1]} and {corrupt.tokens.shape[1]} columns. Choose another data.corruption"
        )
    both = TokenBatch(torch.cat([clean.tokens, corrupt.tokens]), torch.cat([clean.mask, corrupt.mask]))
    shared = [name for name in pairs.positions if name in pairs.corrupt_positions]
    return both, {name: torch.cat([pairs.positions[name], pairs.corrupt_positions[name]]) for name in shared}


def hypothesis_of(spec: HypothesisSpec, where: str) -> Hypothesis:
    """The hypothesis that a config describes."""
    children = tuple(_node(name, item, f"{where}.{name}") for name, item in spec.children.items())
    return Hypothesis(_sampler(spec.sampler), _sampler(spec.others), children, spec.at)


def _node(name: str, item: Claimed, where: str) -> Node:
    return Node(
        name, tuple(parse_sender(one, f"{where}.nodes") for one in item.nodes), item.at, item.through,
        _sampler(item.sampler), _sampler(item.others),
        tuple(_node(below, child, f"{where}.{below}") for below, child in item.children.items()),
    )  # fmt: skip


def _sampler(item: SamplerSpec) -> Sampler:
    return tuple(item) if isinstance(item, list) else item


def _features(data: Any) -> dict[str, list[Any]]:
    """Features of the clean prompts by name; none for plain token ids."""
    prompts = getattr(data, "prompts", None)
    if prompts is None:
        return {}
    return {name: list(prompts.feature(own)) for name, own in FEATURES.items()}


def _ends(
    model: LanguageModel, prompts: TokenBatch, positions: dict[str, Tensor], pairs: PromptPairs, table: Table,
    spec: CausalScrubbing,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The same measures of the model itself on the reference prompts, and with nothing of them kept."""
    nothing = Hypothesis()
    scrubber = Scrubber(model, prompts, positions, nothing, spec.batch)
    root = draw(nothing, table, spec.samples, spec.seed)[""]
    reference = torch.as_tensor(root.own)
    plain, base = [], []
    for rows in lm.chunks(spec.samples, spec.batch):
        plain.append(_score(model, scrubber.plain_stream(reference[rows]), pairs, reference[rows]))
        other = torch.as_tensor(root.other[rows])
        base.append(_score(model, scrubber.plain_stream(other), pairs, reference[rows]))
    return torch.cat(plain, dim=1).numpy(), torch.cat(base, dim=1).numpy()


def _score(model: LanguageModel, stream: Tensor, pairs: PromptPairs, rows: Tensor) -> Tensor:
    """Logit difference and loss [2, R] under the labels of these rows, in float64."""
    with torch.no_grad():
        logits = model.unembed(model.final_norm(stream)).double().cpu()
    if not torch.isfinite(logits).all():
        raise UserError(f"logits are not finite (dtype {model.dtype}). Give model.dtype=float32")
    chosen = logits.gather(1, lm.answer_columns(pairs)[rows])
    loss = -logits.log_softmax(-1).gather(1, pairs.answer[rows][:, None])[:, 0]
    return torch.stack([chosen[:, 0] - chosen[:, 1], loss])


def _result(found: dict[str, np.ndarray], model: np.ndarray, base: np.ndarray) -> Result:
    scalars: dict[str, float] = {}
    arrays = {}
    units = {"logit_difference": "logit", "loss": "nat"}
    for i, name in enumerate(MEASURES):
        scalars[f"model.{name}"], scalars[f"base.{name}"] = float(model[i].mean()), float(base[i].mean())
        stacked = torch.from_numpy(np.stack([values[i] for values in found.values()]))
        arrays[name] = lm.array(stacked, {"hypothesis": list(found), "sample": stacked.shape[1]}, units[name])
        for kind, values in (("model", model), ("base", base)):
            one = torch.from_numpy(values[i])
            arrays[f"{kind}_{name}"] = lm.array(one, {"sample": len(one)}, units[name])
        recovered = {"logit_difference": "recovered", "loss": "recovered_loss"}[name]
        span = model[i].mean() - base[i].mean()
        for hypothesis, values in found.items():
            scalars[f"{hypothesis}.{name}"] = float(values[i].mean())
            scalars[f"{hypothesis}.{name}.se"] = lm.summary("x", values[i])["x.se"]
            scalars[f"{hypothesis}.{recovered}"] = float((values[i].mean() - base[i].mean()) / span)
    names = list(found)
    arrays["recovered"] = lm.array(
        torch.tensor([scalars[f"{name}.recovered"] for name in names]), {"hypothesis": names}
    )
    return Result(scalars, arrays)
