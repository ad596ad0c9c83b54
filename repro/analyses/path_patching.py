"""Which heads and MLPs a model's answer depends on, directly or through the inputs of chosen heads.

Source: arXiv 2211.00593, section 3 and appendix B. The method: `repro/interventions/path_patching.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from repro.analyses import lm_inputs as lm
from repro.analyses.path_patching_specs import PathPatching
from repro.data.token_pairs import PromptPairs
from repro.interventions.path_patching import Effects, sweep
from repro.interventions.path_patching_nodes import Sender, all_senders, parse_receiver, parse_sender
from repro.models.language_model import LanguageModel
from repro.progress import progress
from repro.results import NamedArray, Result
from repro.shards import WHOLE, Part, join


def run(subject: Any, data: Any, record: Any, directory: Path | None, spec: PathPatching) -> Result:
    """Patch the path from every head and every MLP, one at a time, and from every group.

    Arrays, in logits: per_prompt [layer, head, prompt], patched minus clean logit difference at END;
    effect [layer, head], its mean, and effect_se, its standard error; effect_percent, 100 times the
    effect over the mean clean logit difference. The same for MLPs: mlp_per_prompt [layer, prompt],
    mlp_effect, mlp_effect_se, mlp_effect_percent [layer]; with groups: group_per_prompt [group, prompt]
    and so on. baseline [prompt]: clean logit differences. most_negative, most_positive [rank]: heads by
    effect, strongest first. Exactly 0: senders that are not below a receiver.
    Scalars: baseline.mean, .sd, .se, and group.NAME, its effect.
    """
    return merge([run_part(subject, data, directory, spec, WHOLE)], spec)


def run_part(subject: Any, data: Any, directory: Path | None, spec: PathPatching, part: Part) -> Result:
    """The arrays by prompt of some of the prompts."""
    model = lm.model_of(subject)
    pairs = lm.pairs_of(model, data)
    senders = all_senders(model.depth, model.heads)
    groups = [[parse_sender(one) for one in group] for group in spec.groups.values()]
    effects = measured(model, pairs, [*senders, *groups], spec.stages, spec, part)
    change, count = effects.change.cpu(), effects.change.shape[1]
    single = change[: len(senders)].view(model.depth, model.heads + 1, count)
    layers, prompts = list(range(model.depth)), {"prompt": count}
    arrays = {
        "baseline": lm.array(effects.baseline, prompts, "logit"),
        "per_prompt": lm.array(single[:, :-1], {"layer": layers, "head": model.heads, **prompts}, "logit"),
        "mlp_per_prompt": lm.array(single[:, -1], {"layer": layers, **prompts}, "logit"),
    }
    if groups:
        axes = {"group": list(spec.groups), **prompts}
        arrays["group_per_prompt"] = lm.array(change[len(senders) :], axes, "logit")
    return Result({}, arrays, {"path": _said(spec)})


def merge(parts: Sequence[Result], spec: PathPatching) -> Result:
    """Means over prompts, and the strongest heads."""
    result = join(parts, "prompt")
    arrays, baseline = result.arrays, result.arrays["baseline"].values
    result.scalars.update(lm.summary("baseline", baseline))
    for name in [name for name in arrays if name.endswith("per_prompt")]:
        for suffix, array in means(arrays[name], baseline).items():
            arrays[name.removesuffix("per_prompt") + suffix] = array
    effect = arrays["effect"]
    for name, heads in strongest(effect.values, spec.top).items():
        arrays[name] = NamedArray(np.array(heads), {"rank": len(heads)})
        result.notes[name] = ", ".join(heads)
    if spec.groups:
        found = zip(spec.groups, arrays["group_effect"].values, strict=True)
        result.scalars.update({f"group.{name}": float(value) for name, value in found})
    return result


def measured(
    model: LanguageModel, pairs: PromptPairs, senders: Sequence[Sender | Sequence[Sender]],
    stages: Sequence[Sequence[str]], spec: Any, part: Part,
) -> Effects:  # fmt: skip
    """The sweep over one part of the prompts, with a progress bar."""
    rows = pairs.rows(part.of(range(len(pairs))))
    through = [[parse_receiver(one) for one in stage] for stage in stages]
    with progress(len(senders) * len(rows), "path patching", "paths") as bar:
        return sweep(
            model, rows, senders, through, positions=spec.positions, mlps=spec.mlps,
            downstream=spec.downstream, rows=spec.rows, advance=bar.advance,
        )  # fmt: skip


def means(per_prompt: NamedArray, baseline: np.ndarray) -> dict[str, NamedArray]:
    """effect, effect_se and effect_percent of changes by prompt, the last axis; se is NaN for one prompt."""
    values = per_prompt.values.astype(np.float64)
    axes = {name: extent for name, extent in per_prompt.axes.items() if name != "prompt"}
    effect, count = values.mean(-1), values.shape[-1]
    error = values.std(-1, ddof=1) / count**0.5 if count > 1 else np.full_like(effect, np.nan)
    percent = 100 * effect / baseline.astype(np.float64).mean()
    return {
        "effect": NamedArray(effect, axes, per_prompt.unit),
        "effect_se": NamedArray(error, axes, per_prompt.unit),
        "effect_percent": NamedArray(percent, axes, "%"),
    }


def strongest(effect: np.ndarray, count: int) -> dict[str, list[str]]:
    """The heads "layer.head" of the lowest and the highest effects [layer, head], strongest first."""
    order = np.argsort(effect, axis=None, kind="stable")
    names = [f"{i // effect.shape[1]}.{i % effect.shape[1]}" for i in order]
    return {"most_negative": names[:count], "most_positive": names[::-1][:count]}


def _said(spec: PathPatching) -> str:
    steps = " -> ".join([", ".join(stage) for stage in spec.stages] + ["logits"])
    return (
        f"each head and MLP -> {steps}; receivers at {spec.positions}; MLPs: {spec.mlps};"
        f" downstream: {spec.downstream}"
    )
