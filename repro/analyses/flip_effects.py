"""Direct effects of all heads under several flips of the names, and whether flips of two names add up.

If a head writes what it has read of one name alone, then exchanging both names does what exchanging each of
them does, added. Source: Redwood Research's REMIX course, day 5, part 2 (claim 1).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from repro.analyses import lm_inputs as lm
from repro.analyses.path_patching import means
from repro.analyses.path_patching_specs import FlipEffects
from repro.errors import UserError
from repro.interventions.path_patching import sweep
from repro.interventions.path_patching_nodes import all_senders
from repro.progress import progress
from repro.results import NamedArray, Result


def run(subject: Any, data: Any, record: Any, directory: Path | None, spec: FlipEffects) -> Result:
    """Path patching from every head and MLP straight to the logits, once for each chain of flips.

    Arrays, in logits: per_prompt [flip, layer, head, prompt], patched minus clean logit difference; effect
    and effect_percent [flip, layer, head]; mlp_effect [flip, layer]; residual [layer, head], the effect of
    the flip `both` minus the sum of `parts`. Scalars: baseline.mean, .sd, .se; residual.max_share, the
    largest |residual| over the largest |effect| of `both`; FLIP.max and FLIP.min over heads.
    """
    model = lm.model_of(subject)
    if not hasattr(data, "flipped"):
        raise UserError("data: flips need prompts made of names. Give data=ioi or data=ioi_remix")
    senders = all_senders(model.depth, model.heads)
    changes, baseline = [], torch.zeros(0)
    with progress(len(spec.flips) * len(senders), "flips", "senders") as bar:
        for i, chain in enumerate(spec.flips.values()):
            pairs = data.pairs(model.tokenizer, chain=chain)
            pairs.check_vocabulary(model.vocabulary)
            effects = sweep(model, pairs, senders, [], mlps=spec.mlps)
            baseline = effects.baseline.cpu()
            changes.append(effects.change.cpu().view(model.depth, model.heads + 1, -1))
            bar.set((i + 1) * len(senders))
    return _result(torch.stack(changes), baseline, spec)


def _result(change: torch.Tensor, baseline: torch.Tensor, spec: FlipEffects) -> Result:
    """change: [flip, layer, head and MLP, prompt]."""
    flips, layers, count = list(spec.flips), list(range(change.shape[1])), change.shape[-1]
    axes: dict[str, Any] = {"flip": flips, "layer": layers}
    heads = lm.array(change[:, :, :-1], {**axes, "head": change.shape[2] - 1, "prompt": count}, "logit")
    base = lm.array(baseline, {"prompt": count}, "logit")
    result = Result(lm.summary("baseline", baseline), {"baseline": base, "per_prompt": heads})
    result.arrays.update(means(heads, base.values))
    mlps = lm.array(change[:, :, -1], {**axes, "prompt": count}, "logit")
    result.arrays["mlp_effect"] = means(mlps, base.values)["effect"]
    effect = result.arrays["effect"].values
    for i, flip in enumerate(flips):
        result.scalars[f"{flip}.max"], result.scalars[f"{flip}.min"] = (
            float(effect[i].max()),
            float(effect[i].min()),
        )
    if spec.both is not None:
        both = effect[flips.index(spec.both)]
        residual = both - sum(effect[flips.index(part)] for part in spec.parts)
        result.arrays["residual"] = NamedArray(
            residual, {"layer": len(layers), "head": both.shape[1]}, "logit"
        )
        result.scalars["residual.max_share"] = float(np.abs(residual).max() / np.abs(both).max())
    return result
