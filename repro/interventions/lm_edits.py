"""Interventions on a language model as values: where, and what happens there.

    run(model, batch, edits=[zero(At("z", 3, heads=[1], positions=[-1]))], reads=[Read(At("logits"))])

Places are those of `repro.models.sites`. Edits of one site are applied in the given order; what is read
there is what is left after them. Nothing here touches a model: `lm_run` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from repro.errors import UserError
from repro.models.language_model import LanguageModel
from repro.models.sites import SITES, check_site

HEAD_SITES = ("q", "k", "v", "z")
EDGE_SITES = ("attn_scores", "pattern")
STREAM_SITES = (
    "token_embedding", "embedding", "resid_pre", "attn_in", "attn_out", "resid_mid", "mlp_in", "mlp_post",
    "mlp_out", "resid_post", "final_norm", "logits",
)  # fmt: skip
LM_SITES = (*STREAM_SITES, *HEAD_SITES, *EDGE_SITES)


@dataclass(frozen=True, eq=False)
class At:
    """A place: a site, and which heads, positions and rows of it.

    heads: of a head or edge site; key/value heads for k and v. None is all.
    positions: columns (negative ones count from the end), the same for all rows; or a LongTensor [rows] or
    [rows, P] of columns for each selected row. For edge sites these are queries. None is all.
    rows: rows of the batch. None is all.
    """

    site: str
    layer: int | None = None
    heads: Sequence[int] | None = None
    positions: Sequence[int] | Tensor | None = None
    rows: Sequence[int] | Tensor | None = None

    @property
    def key(self) -> tuple[str, int | None]:
        return self.site, self.layer


@dataclass(frozen=True, eq=False)
class Replace:
    """Put a value there: a number, or a tensor that broadcasts to the selected slice."""

    at: At
    value: Tensor | float

    def __call__(self, found: Tensor) -> Tensor:
        value = torch.as_tensor(self.value, dtype=found.dtype, device=found.device)
        return value.expand_as(found)


@dataclass(frozen=True, eq=False)
class Add:
    """Add a value there."""

    at: At
    value: Tensor | float

    def __call__(self, found: Tensor) -> Tensor:
        return found + torch.as_tensor(self.value, dtype=found.dtype, device=found.device)


@dataclass(frozen=True, eq=False)
class Scale:
    """Multiply by a factor there."""

    at: At
    factor: Tensor | float

    def __call__(self, found: Tensor) -> Tensor:
        return found * torch.as_tensor(self.factor, dtype=found.dtype, device=found.device)


@dataclass(frozen=True, eq=False)
class Transform:
    """Put function(slice) there."""

    at: At
    function: Callable[[Tensor], Tensor]

    def __call__(self, found: Tensor) -> Tensor:
        return self.function(found)


@dataclass(frozen=True, eq=False)
class CutEdges:
    """Attention knockout: queries no longer see keys, in one layer (Geva et al., arXiv 2304.14767).

    The scores get the lowest value before the softmax, so that the rest of a pattern is renormalised; a
    query that sees nothing any more gets a pattern of zeros. queries, keys: columns for all rows, or
    LongTensors [rows, ...]; every listed query loses every listed key of its row.
    """

    layer: int
    queries: Sequence[int] | Tensor
    keys: Sequence[int] | Tensor
    heads: Sequence[int] | None = None
    rows: Sequence[int] | Tensor | None = None


Edit = Replace | Add | Scale | Transform | CutEdges


@dataclass(frozen=True, eq=False)
class Read:
    """Keep what is at a place.

    gradient: its gradient, too. reduce: what to keep instead, computed at once: of the value, or of
    value and gradient if a gradient is asked for.
    """

    at: At
    gradient: bool = False
    reduce: Callable[..., Any] | None = None


def zero(at: At) -> Replace:
    """Zero ablation."""
    return Replace(at, 0.0)


def mean(at: At, value: Tensor) -> Replace:
    """Mean ablation: the mean over some reference set, however it was grouped, broadcast to the slice."""
    return Replace(at, value)


def patch(at: At, value: Tensor) -> Replace:
    """Activation patching: the same place's value in another run."""
    return Replace(at, value)


def resample(at: At, value: Tensor, rows: Sequence[int] | Tensor) -> Replace:
    """Resample ablation: each row gets the value of another row (`rows`) of a run."""
    return Replace(at, value[torch.as_tensor(rows, device=value.device)])


def check(at: At, model: LanguageModel) -> None:
    """Refuse a place that the model does not have."""
    check_site(at.site, at.layer, model.depth)
    if at.site not in LM_SITES:
        raise UserError(
            f"site {at.site}: language models do not have it. Valid choices: {', '.join(LM_SITES)}"
        )
    if at.site == "resid_mid" and model.parallel:
        raise UserError(
            "site resid_mid: attention and MLP of this model are parallel, so nothing is between them."
            " Choose resid_pre, attn_out or mlp_out"
        )
    if at.heads is not None:
        if "head" not in SITES[at.site].axes:
            raise UserError(
                f"site {at.site}: it has no heads. Sites with heads: {', '.join(HEAD_SITES + EDGE_SITES)}"
            )
        for head in at.heads:
            model.check_head(at.layer or 0, head, f"site {at.site}", kv=at.site in ("k", "v"))


def take(found: Tensor, at: At) -> Tensor:
    """The selected slice of a site's whole tensor."""
    index = _index(found, at)
    return found if index is None else found[index]


def put(found: Tensor, at: At, new: Tensor) -> Tensor:
    """The site's whole tensor with the selected slice replaced; `found` itself stays as it is."""
    index = _index(found, at)
    return new if index is None else found.index_put(index, new)


def columns(positions: Sequence[int] | Tensor | None, rows: int, length: int, device: Any) -> Tensor:
    """Positions as columns [rows, P], counted from the start."""
    if positions is None:
        return torch.arange(length, device=device).expand(rows, length)
    given = torch.as_tensor(positions, device=device)
    if not isinstance(positions, Tensor):
        given = given.expand(rows, -1)
    elif given.ndim == 1:
        given = given[:, None]
    if given.shape[0] != rows:
        raise UserError(
            f"positions: expected one row of columns for each of {rows} rows, got {tuple(given.shape)}"
        )
    if given.numel() and not (-length <= int(given.min()) and int(given.max()) < length):
        raise UserError(
            f"positions: {int(given.min())} to {int(given.max())} do not all exist. Valid: 0 to {length - 1}"
        )
    return torch.where(given < 0, given + length, given)


def _index(found: Tensor, at: At) -> tuple[Tensor, ...] | None:
    """Index tensors for the axes up to the last selected one; None where everything is selected."""
    if at.heads is None and at.positions is None and at.rows is None:
        return None
    edge = at.site in EDGE_SITES
    device, length = found.device, found.shape[2 if edge else 1]
    rows = (
        torch.arange(found.shape[0], device=device)
        if at.rows is None
        else torch.as_tensor(at.rows, device=device)
    )
    where = columns(at.positions, len(rows), length, device)
    if at.site not in (*HEAD_SITES, *EDGE_SITES):
        return rows[:, None], where
    count = found.shape[1 if edge else 2]
    heads = (
        torch.arange(count, device=device)
        if at.heads is None
        else torch.tensor(list(at.heads), device=device)
    )
    if edge:
        return rows[:, None, None], heads[None, :, None], where[:, None, :]
    return rows[:, None, None], where[:, :, None], heads[None, None, :]
