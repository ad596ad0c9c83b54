"""Direct logit attribution: what embedding, heads, biases and MLPs write along answer minus wrong at END."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repro.analyses import lm_inputs as lm
from repro.analyses.lm_direct import readout
from repro.analyses.lm_measure_specs import LogitAttribution
from repro.data.token_pairs import PromptPairs
from repro.errors import UserError
from repro.interventions.lm_edits import At
from repro.interventions.lm_run import run as forward
from repro.models.language_model import LanguageModel
from repro.results import Result

CONVENTIONS = {
    "frozen": "the final norm's scale is that of the run, so the parts sum to the logit difference",
    "folded": "the final norm's gain and centring, without its scale",
    "ignored": "the bare unembedding, without the final norm",
}


def run(subject: Any, data: Any, record: Any, directory: Path | None, spec: LogitAttribution) -> Result:
    """Contributions to the logit difference at END, in logits (`frozen`), else in the units of the stream.

    Arrays: head [layer, head], mlp [layer], attention_bias [layer] (the shared output bias): means over
    prompts; head_per_prompt [layer, head, prompt], mlp_per_prompt [layer, prompt]; embedding, constant
    (biases after the stream), logit_difference [prompt]; head_answer and head_wrong [layer, head]: the
    same for each of the two tokens. Scalars: heads.sum, mlps.sum, biases.sum, embedding.mean,
    constant.mean, logit_difference.mean; sum_error: largest |sum of parts - logit difference| over prompts
    (small with `frozen` only). Raises `UserError` for blocks whose outputs do not add up (OPT-350M).
    """
    model = lm.model_of(subject)
    pairs = lm.pairs_of(model, data)
    parts = [
        _contributions(model, lm.part_of(pairs, rows), spec) for rows in lm.chunks(len(pairs), spec.batch)
    ]
    found = {name: torch.cat([part[name] for part in parts], dim=-1) for name in parts[0]}
    layer, head, prompt = {"layer": model.depth}, {"head": model.heads}, {"prompt": len(pairs)}
    unit = "logit" if spec.norm == "frozen" else "1"
    arrays = {
        "head": lm.array(found["head"].mean(-1), {**layer, **head}, unit),
        "head_answer": lm.array(found["head_answer"].mean(-1), {**layer, **head}, unit),
        "head_wrong": lm.array(found["head_wrong"].mean(-1), {**layer, **head}, unit),
        "mlp": lm.array(found["mlp"].mean(-1), layer, unit),
        "attention_bias": lm.array(found["bias"].mean(-1), layer, unit),
        "head_per_prompt": lm.array(found["head"], {**layer, **head, **prompt}, unit),
        "mlp_per_prompt": lm.array(found["mlp"], {**layer, **prompt}, unit),
        "embedding": lm.array(found["embedding"], prompt, unit),
        "constant": lm.array(found["constant"], prompt, unit),
        "logit_difference": lm.array(found["logit_difference"], prompt, "logit"),
    }
    total = sum(found[name].flatten(0, -2).sum(0) for name in ("head", "mlp", "bias"))
    total = total + found["embedding"] + found["constant"]
    scalars = {
        "heads.sum": float(found["head"].mean(-1).sum()),
        "mlps.sum": float(found["mlp"].mean(-1).sum()),
        "biases.sum": float(found["bias"].mean(-1).sum()),
        "embedding.mean": float(found["embedding"].mean()),
        "constant.mean": float(found["constant"].mean()),
        "logit_difference.mean": float(found["logit_difference"].mean()),
        "sum_error": float((total - found["logit_difference"]).abs().max()),
    }
    return Result(scalars, arrays, {"convention": CONVENTIONS[spec.norm]})


def _contributions(model: LanguageModel, pairs: PromptPairs, spec: LogitAttribution) -> dict[str, Tensor]:
    """Contributions [..., B] of a few prompts, in float64."""
    batch, positions = lm.side(pairs, spec.which)
    end, last = positions[lm.ANSWER], model.depth - 1
    at = {
        site: [At(site, layer, positions=end) for layer in range(model.depth)]
        for site in ("z", "mlp_out", "attn_out")
    }
    stream = [At("resid_pre", 0, positions=end), At("resid_post", last, positions=end)]
    found = forward(model, batch, reads=[*sum(at.values(), []), *stream], logits=None)
    start, final = (found[place][:, 0].cpu().double() for place in stream)
    mlps = torch.stack([found[place][:, 0].cpu().double() for place in at["mlp_out"]])
    outs = torch.stack([found[place][:, 0].cpu().double() for place in at["attn_out"]])
    _check_sum(start + mlps.sum(0) + outs.sum(0), final, model)
    columns = lm.answer_columns(pairs)
    vectors, constants = readout(model, final, columns, spec.norm)
    direction = vectors[:, 0] - vectors[:, 1]
    heads, biases = [], []
    for layer, place in zip(model.layers, at["z"], strict=True):
        matrix = layer.output_matrix.cpu().double()
        written = torch.einsum("bhc,hcd->bhd", found[place][:, 0].cpu().double(), matrix)
        heads.append(torch.einsum("bhd,bkd->khb", written, vectors))
        bias = torch.zeros(model.width) if layer.output_bias is None else layer.output_bias
        biases.append(direction @ bias.cpu().double())
    by_token = torch.stack(heads, dim=1)
    return {
        "head": by_token[0] - by_token[1],
        "head_answer": by_token[0],
        "head_wrong": by_token[1],
        "bias": torch.stack(biases),
        "mlp": torch.einsum("lbd,bd->lb", mlps, direction),
        "embedding": (start * direction).sum(-1),
        "constant": constants[:, 0] - constants[:, 1],
        "logit_difference": lm.logit_difference(model, found[stream[1]][:, 0], columns, end).cpu(),
    }


def _check_sum(total: Tensor, final: Tensor, model: LanguageModel) -> None:
    error = float((total - final).norm() / final.norm())
    # Half precision rounds after every addition; a norm between blocks is off by far more.
    if error > (0.05 if model.dtype in (torch.float16, torch.bfloat16) else 1e-3):
        raise UserError(
            f"direct attribution: the parts of this {model.family} model do not add up to its last residual"
            f" stream (off by {error:.0%}), since it normalises after its blocks. Use"
            " analysis=activation_patching"
        )
