"""Path patching from every head to the logits at one position, on a model that may be knocked out already.

All other heads keep their outputs; MLPs either carry the change on (`recompute`) or keep theirs (`freeze`).
Nothing moves between positions then, so only the last position is computed (source: Wang et al. 2022,
arXiv 2211.00593, appendix on path patching and the backup heads).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from repro.data.token_batch import TokenBatch
from repro.errors import UserError
from repro.interventions.lm_edits import At, Edit
from repro.interventions.lm_run import Run, run
from repro.interventions.mean_ablation import Masks
from repro.models.language_model import LanguageModel, Layer

Twin = tuple[TokenBatch, Tensor, Sequence[Edit]]


@torch.no_grad()
def direct_effects(
    model: LanguageModel,
    clean: Twin,
    corrupt: Twin,
    measure: Callable[[Tensor], Tensor],
    mlps: str,
    knocked: Masks,
) -> tuple[Tensor, Tensor]:
    """`measure` of the clean run [B], and with each head's direct path patched from the corrupt run,
    [L, H, B].

    clean, corrupt: (prompts, column of the last position [B], edits in force). measure: from last residual
    streams [copies * B, d] to [copies * B]. knocked: what the edits hold fixed in the clean run; an MLP
    among it carries nothing on. Raises `UserError` for models that normalise after their blocks.
    """
    if getattr(model.layers[0], "post_norm", False):
        raise UserError(
            f"direct effects: this {model.family} model normalises after its blocks, so there is no direct"
            " path from a head to the logits. Leave analysis.direct_after empty"
        )
    base, twin = (_read(model, *each) for each in (clean, corrupt))
    rows = len(clean[0])
    live = torch.zeros(0, rows, model.width, dtype=model.dtype, device=model.device)
    for layer in model.layers:
        middle = base["resid_mid" if layer.reads_mid else "resid_pre", layer.index][:, 0]
        new = layer.head_out(twin["z", layer.index][:, 0] - base["z", layer.index][:, 0]).transpose(0, 1)
        live = live.to(middle.device)
        fixed = _knocked_mlp(knocked, layer.index, clean[1])
        if layer.reads_mid:
            live = torch.cat([live, new])
        if mlps == "recompute" and len(live):
            live = live + _carried(layer, middle, live, fixed)
        if not layer.reads_mid:
            live = torch.cat([live, new])
    final = base["resid_post", model.depth - 1][:, 0]
    patched = measure((final + live.to(final.device)).flatten(0, 1))
    return measure(final), patched.view(model.depth, model.heads, rows)


def _read(model: LanguageModel, batch: TokenBatch, end: Tensor, edits: Sequence[Edit]) -> Run:
    reads = [At("resid_post", model.depth - 1, positions=end)]
    for layer in model.layers:
        middle = "resid_mid" if layer.reads_mid else "resid_pre"
        reads += [At("z", layer.index, positions=end), At(middle, layer.index, positions=end)]
    return run(model, batch, edits, reads, logits=None)


def _carried(layer: Layer, middle: Tensor, live: Tensor, fixed: Tensor | None) -> Tensor:
    """What the MLP adds for each change [K, B, d] of its input [B, d]; nothing in rows where it is fixed."""
    change = layer.mlp(layer.norm2(middle + live)) - layer.mlp(layer.norm2(middle))
    return change if fixed is None else torch.where(fixed.to(change.device)[:, None], 0.0, change)


def _knocked_mlp(knocked: Masks, layer: int, end: Tensor) -> Tensor | None:
    mask = knocked.get(("mlp_out", layer))
    return None if mask is None else mask[torch.arange(len(mask)), end]
