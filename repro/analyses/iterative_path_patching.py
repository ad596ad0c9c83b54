"""A circuit found from its end: the heads that act on the logits, those that act through them, and so on.

Source: arXiv 2211.00593, section 3 (name movers, S-inhibition heads, the heads before them); a published
course's tool that lengthens paths by one step at a time. Every step patches whole paths down to the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from repro.analyses import lm_inputs as lm
from repro.analyses.path_patching import means, measured
from repro.analyses.path_patching_specs import IterativePathPatching
from repro.interventions.path_patching_nodes import Receiver, Sender, all_senders
from repro.models.language_model import LanguageModel
from repro.results import NamedArray, Result
from repro.shards import WHOLE


def run(subject: Any, data: Any, record: Any, directory: Path | None, spec: IterativePathPatching) -> Result:
    """Sweep, choose, lengthen the paths by the chosen heads' inputs, and sweep again.

    Arrays, in logits: per_prompt [step, layer, head, prompt], change of the logit difference at END with the
    paths from this head through all heads found before patched; effect [step, layer, head], effect_se and
    effect_percent as in path patching; mlp_per_prompt, mlp_effect, ... without head; baseline [prompt];
    found.STEP [rank]: heads found, the step's strongest first. Scalars: baseline.mean, .sd, .se;
    found.STEP, the number of heads; unreached.STEP, heads not below any receiver, whose effect is 0.
    Ends early where no head is below those found. Notes: the heads of each step.
    """
    model = lm.model_of(subject)
    pairs = lm.pairs_of(model, data)
    senders, stages = all_senders(model.depth, model.heads), []
    names, changes, result = ["logits"], [], Result()
    chosen: list[Sender] = []
    for step in range(len(spec.steps) + 1):
        if step:
            stages = [_through(model, chosen, spec.steps[step - 1]), *stages]
            if all(one.layer == 0 for one in stages[0]):
                result.notes["end"] = f"nothing is below the heads found in step {step - 1}"
                break
            names.append(f"{step}.{spec.steps[step - 1].letter}")
        written = [[str(one) for one in stage] for stage in stages]
        effects = measured(model, pairs, senders, written, spec, WHOLE)
        changes.append(effects.change.cpu().view(model.depth, model.heads + 1, -1).numpy())
        result.arrays["baseline"] = lm.array(effects.baseline, {"prompt": len(pairs)}, "logit")
        limits = spec.steps[step - 1] if step else spec
        chosen = _choose(changes[-1][:, :-1].mean(-1), limits.negative, limits.positive)
        _tell(result, step, chosen, stages, model)
        if not chosen:
            result.notes["end"] = f"no head has any effect in step {step}"
            break
    axes = {"step": names, "layer": model.depth, "head": model.heads, "prompt": len(pairs)}
    stacked, baseline = np.stack(changes), result.arrays["baseline"].values
    result.arrays["per_prompt"] = NamedArray(stacked[:, :, :-1], axes, "logit")
    del axes["head"]
    result.arrays["mlp_per_prompt"] = NamedArray(stacked[:, :, -1], axes, "logit")
    for prefix in ("", "mlp_"):
        for name, array in means(result.arrays[f"{prefix}per_prompt"], baseline).items():
            result.arrays[prefix + name] = array
    result.scalars.update(lm.summary("baseline", baseline))
    return result


def _through(model: LanguageModel, heads: Sequence[Sender], step: Any) -> list[Receiver]:
    """The chosen input of these heads; query heads that share keys and values receive together."""
    share = 1 if step.letter == "q" else model.heads // model.kv_heads
    found = {(one.layer, (one.head or 0) // share) for one in heads}
    return [Receiver(layer, head, step.letter, step.position) for layer, head in sorted(found)]


def _choose(effect: np.ndarray, negative: int, positive: int) -> list[Sender]:
    """Heads of the lowest effects below 0 and the highest above 0 [layer, head], by absolute effect."""
    order = np.argsort(effect, axis=None, kind="stable")
    low = [i for i in order[:negative] if effect.flat[i] < 0]
    high = [i for i in order[::-1][:positive] if effect.flat[i] > 0]
    strongest = sorted([*low, *high], key=lambda i: -abs(effect.flat[i]))
    return [Sender(int(i) // effect.shape[1], int(i) % effect.shape[1]) for i in strongest]


def _tell(
    result: Result, step: int, chosen: Sequence[Sender], stages: Sequence[Sequence[Receiver]],
    model: LanguageModel,
) -> None:  # fmt: skip
    names = [str(one) for one in chosen]
    if names:
        result.arrays[f"found.{step}"] = NamedArray(np.array(names), {f"rank.{step}": len(names)})
    reach = max(one.layer for one in stages[0]) if stages else model.depth
    result.scalars[f"found.{step}"] = len(names)
    result.scalars[f"unreached.{step}"] = (model.depth - reach) * model.heads
    path = " -> ".join([", ".join(map(str, stage)) for stage in stages] + ["logits"])
    result.notes[f"found.{step}"] = f"{', '.join(names) or 'none'} (-> {path})"
