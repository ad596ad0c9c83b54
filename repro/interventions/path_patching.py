"""Path patching of many senders at once, exactly: how a model's answer depends on single paths.

Source: arXiv 2211.00593, appendix B. A sender's output is taken from a corrupt prompt and reaches only the
receivers; `path_patching_definition` says it in full passes, one sender at a time. Here two cached runs serve
all senders. With all heads frozen nothing moves between positions, so what a sender changes is carried up
through MLPs and norms at the receivers' positions alone, all senders and prompts as rows of one product.
From the receivers on, only changed positions are recomputed, on the cached keys and values of earlier ones.

    sweep(model, pairs, all_senders(model.depth, model.heads))                       heads -> logits
    sweep(model, pairs, senders, [[parse_receiver("9.9.q")]])                        heads -> query -> logits
    sweep(model, pairs, senders, [[parse_receiver("8.6.v@S2")], [parse_receiver("9.9.q@END")]])   chains
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from repro.data.token_pairs import PromptPairs
from repro.errors import UserError
from repro.interventions.lm_edits import Edit
from repro.interventions.path_patching_attention import Values, receive, rerun, write
from repro.interventions.path_patching_cache import Cached, cache, hull, to_device
from repro.interventions.path_patching_nodes import Receiver, Sender, check_order
from repro.interventions.path_patching_plan import Downstream, Mlps, Plan, plan
from repro.interventions.path_patching_stream import Entering, Sent, propagate
from repro.models.language_model import LanguageModel

# From what the unembedding reads at END [.., B, d] and the prompts of these rows: a number each [.., B].
Metric = Callable[[LanguageModel, Tensor, PromptPairs], Tensor]

# Rows (case, prompt, column) at once. On a CPU more would only leave its caches.
CPU_ROWS = 1024
CPU_TOKENS = 8192
GPU_SHARE = 0.25


@dataclass(frozen=True, eq=False)
class Effects:
    """baseline [B]: the metric of the clean run. patched [S, B]: with each case's path patched."""

    baseline: Tensor
    patched: Tensor

    @property
    def change(self) -> Tensor:
        """patched - baseline, [S, B]; exactly 0 where a sender is not below a receiver."""
        return self.patched - self.baseline


def logit_difference(model: LanguageModel, normed: Tensor, pairs: PromptPairs) -> Tensor:
    """Logit of the answer minus that of the wrong token, in logits; only these two columns are formed."""
    columns = torch.stack([pairs.answer, pairs.wrong], dim=-1).to(normed.device)
    logits = model.unembed(normed, columns)
    return logits[..., 0] - logits[..., 1]


@torch.no_grad()
def sweep(
    model: LanguageModel,
    pairs: PromptPairs,
    senders: Sequence[Sender | Sequence[Sender]],
    stages: Sequence[Sequence[Receiver]] = (),
    *,
    positions: str = "END",
    mlps: Mlps = "recompute",
    downstream: Downstream = "recompute",
    metric: Metric = logit_difference,
    edits: Sequence[Edit] = (),
    rows: int | None = None,
    advance: Callable[[int], None] | None = None,
) -> Effects:
    """Patch the path from each sender, or group of senders, through all stages of receivers to the logits.

    stages: receivers that the path leads through, in order; none: straight to the logits. positions: where
    receivers receive that do not say so themselves: a name, or "all". Senders are patched there, too;
    elsewhere they could not act. mlps: whether MLPs between sender and receivers (and between stages) carry
    the change on (recompute) or not (freeze). downstream: what comes after the last stage is recomputed, or
    only its heads' own writing into the last residual stream changes (filter).
    edits: of the model itself, in all runs (`Replace` at z or mlp_out, such as a knockout).
    rows: how many (sender, prompt, position) at once; null: what memory allows. advance: told how many
    (sender, prompt) are done.

    Raises `UserError` for heads and positions that do not exist, for receivers that no sender can reach, and
    for values that are not finite.
    """
    groups = [(one,) if isinstance(one, Sender) else tuple(one) for one in senders]
    _check(model, groups, stages)
    pairs.check_vocabulary(model.vocabulary)
    order = sorted(range(len(groups)), key=lambda case: min(one.enters for one in groups[case]))
    everyone = [one for group in groups for one in group]
    baseline, patched = [], []
    for part in _prompts(model, pairs, stages, positions, rows):
        at = plan(model, part, stages, positions, mlps, downstream)
        cached = cache(model, part, at, everyone, edits)
        before = _metric(model, metric, cached.at("resid_post", model.depth - 1, at.end[:, None])[:, 0], part)
        after = before.repeat(len(groups), 1)
        for cases in _cases(model, order, len(part), hull(at).shape[1], rows):
            sent = Sent(cached, _first(at).columns, [groups[case] for case in cases])
            end = _follow(model, cached, at, sent)
            if len(end):
                after[cases[: len(end)]] = _metric(model, metric, end, part)
            if advance is not None:
                advance(len(cases) * len(part))
        baseline.append(before)
        patched.append(after)
    return Effects(torch.cat(baseline), torch.cat(patched, dim=1))


def _follow(model: LanguageModel, cached: Cached, at: Plan, entering: Entering) -> Tensor:
    """The last residual stream at END [n, B, d] of the cases that reach it, the first n."""
    recompute, stages = at.mlps == "recompute", [*at.stages, at.target]
    for stage, after in zip(stages, stages[1:], strict=False):
        values: Values = {}
        for layer, delta in propagate(model, cached, entering, stage.columns, stage.layers, recompute):
            values |= receive(model, cached, stage, layer, delta)
        if not any(len(value) for value in values.values()):
            return torch.empty(0)
        if after is stages[-1] and at.downstream == "recompute":
            return rerun(model, cached, stage, values, at.end)
        entering = write(model, cached, stage, values, after.columns, len(entering.times))
    # Filtered, MLPs after the receivers are held; straight to the logits, `mlps` says it.
    carried = recompute and not at.stages
    (delta,) = (
        change for _, change in propagate(model, cached, entering, at.end[:, None], [model.depth], carried)
    )
    return (cached.at("resid_post", model.depth - 1, at.end[:, None]) + delta)[:, :, 0]


def _first(at: Plan):
    return at.stages[0] if at.stages else at.target


def _metric(model: LanguageModel, metric: Metric, resid: Tensor, pairs: PromptPairs) -> Tensor:
    values = metric(model, model.final_norm(resid.to(model.unembedding.device)), pairs)
    if not torch.isfinite(values).all():
        raise UserError(
            f"logits are not finite (dtype {model.dtype}). Give model.dtype=float32, and check the"
            " checkpoint's weights"
        )
    return values


def _check(
    model: LanguageModel, groups: Sequence[Sequence[Sender]], stages: Sequence[Sequence[Receiver]]
) -> None:
    if not groups or not all(groups):
        raise UserError("senders: expected at least one, and no empty group")
    for one in (one for group in groups for one in group):
        if one.head is not None:
            model.check_head(one.layer, one.head, f"sender {one}")
        elif not -1 <= one.layer < model.depth:
            raise UserError(f"sender {one}: it does not exist. Valid layers: 0 to {model.depth - 1}")
    named = [group for group in groups if len(groups) == 1 or len(group) > 1]
    check_order(named, stages)


def _prompts(
    model: LanguageModel, pairs: PromptPairs, stages: Sequence[Sequence[Receiver]], positions: str,
    rows: int | None,
) -> Iterator[PromptPairs]:  # fmt: skip
    """Prompts in portions whose cached runs fit: as many as rows allow at the columns that matter."""
    whole = to_device(pairs, model.device)
    width = hull(plan(model, whole, stages, positions, "recompute", "recompute")).shape[1]
    tokens = CPU_TOKENS if model.device.type == "cpu" else 64 * CPU_TOKENS
    count = max(min(_rows(model, rows) // width, tokens // whole.clean.tokens.shape[1]), 1)
    for begin in range(0, len(whole), count):
        yield whole.rows(range(begin, min(begin + count, len(whole))))


def _cases(
    model: LanguageModel, order: Sequence[int], prompts: int, width: int, rows: int | None
) -> Iterator[list[int]]:
    count = max(_rows(model, rows) // (prompts * width), 1)
    for begin in range(0, len(order), count):
        yield list(order[begin : begin + count])


def _rows(model: LanguageModel, rows: int | None) -> int:
    """Rows at once: given, or as many as a share of the free memory holds."""
    if rows is not None:
        return max(rows, 1)
    if model.device.type != "cuda":
        return CPU_ROWS
    free, _ = torch.cuda.mem_get_info(model.device)
    # A row's MLP hidden units, three times over in activation functions, and a dozen vectors of the stream.
    row = (4 * model.mlp_width + 16 * model.width) * model.unembedding.element_size()
    return max(int(free * GPU_SHARE / row), CPU_ROWS)
