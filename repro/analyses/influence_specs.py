"""What influence functions can be told. Imports no PyTorch.

Of all settings those of batches and partitions change memory and speed, and no number beyond rounding.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from repro.analyses.base_specs import Analysis, Of
from repro.analyses.influence_costs import cost as influence_cost
from repro.costs import Cost, not_modelled
from repro.errors import UserError

Natural = Annotated[int, Field(ge=0)]
Size = Literal["auto"] | PositiveInt
Strategy = Literal["identity", "diagonal", "kfac", "ekfac"]
MANIFEST = "factors.json"  # of saved factors
SIZES = (
    "factor_batch",
    "train_batch",
    "query_batch",
    "query_accumulation",
    "partitions",
    "module_partitions",
)


def _heuristic(value: Any) -> Any:
    return "heuristic" if value is None else value


class InfluenceAnalysis(Analysis):
    """What all analyses with influence functions share.

    strategy: the curvature that gradients are multiplied with the inverse of. fisher: labels that factors
    are fitted with: drawn from the model (the true Fisher), those of the data (empirical), or fisher_labels
    of the data (given). damping: added to every eigenvalue; null or heuristic: 0.1 times their mean, per
    module.
    factor_examples: factors are fitted on the first so many training blocks at most.
    dtype: of model and computation; bfloat16 is autocast, with everything but eigendecomposition, SVD and
    reciprocals in bfloat16; with `gentle`, eigenvalues and preconditioning stay in float32.
    modules: qkv, attn_out, mlp_in, mlp_out, or parts of paths of modules, with * and ?; null: all projections
    of attention and MLP.
    measurement: of a query, a sum over its tokens: loss, log-probability, or margin (minus the log-odds).
    rank: preconditioned query gradients are cut to this rank, where that is less than both sides; null: not.
    svd: how. sum_queries: one score for the sum of all queries. seed: of drawn labels and the randomised SVD.
    factor_batch, train_batch, query_batch: blocks in one pass; query_accumulation: batches of queries that
    one pass over the training blocks serves; partitions: of the training blocks, which are what is saved on
    the way and what jobs share out; module_partitions: of the modules, each with passes of its own.
    factors_path: a folder with fitted factors to use, refused if they are of another model, data or dtype.
    """

    models: ClassVar[tuple[str, ...]] = ("hf", "organism", "text_organism", "fine_tuned")
    strategy: Strategy = "ekfac"
    fisher: Literal["sampled", "empirical", "given"] = "sampled"
    damping: Annotated[Literal["heuristic"] | Annotated[float, Field(ge=0)], BeforeValidator(_heuristic)] = (
        1e-8
    )
    factor_examples: PositiveInt = 100_000
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    gentle: bool = False
    modules: Annotated[list[str], Field(min_length=1)] | None = None
    measurement: Literal["loss", "log_probability", "margin"] = "loss"
    sum_queries: bool = False
    rank: PositiveInt | None = None
    svd: Literal["randomised", "exact"] = "randomised"
    seed: Natural = 0
    factor_batch: Size = "auto"
    train_batch: Size = "auto"
    query_batch: Size = "auto"
    query_accumulation: Size = "auto"
    partitions: Size = "auto"
    module_partitions: PositiveInt = 1
    per_token: bool = False
    per_module: bool = True
    self_influence: bool = True
    factors_path: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.gentle and self.dtype != "bfloat16":
            raise UserError(
                f"analysis.gentle: it says what of bfloat16 stays in float32; got analysis.dtype="
                f"{self.dtype}. Leave it out, or give analysis.dtype=bfloat16"
            )
        if self.factors_path is not None:
            _manifest_of(self.factors_path)
        return self

    def cost(self, subject: Any, data: Any) -> Cost:
        """Of factors and pairwise scores."""
        return influence_cost(subject, data, self)

    def fingerprint(self) -> dict[str, Any]:
        plain = self.model_dump(mode="json", exclude={*SIZES, "factors_path"})
        used = _manifest_of(self.factors_path) if self.factors_path is not None else None
        return {**plain, "factors": used and hashlib.sha256(used.read_bytes()).hexdigest()}


def _manifest_of(folder: str) -> Path:
    """factors.json of a folder with saved factors, or of the only one in it."""
    path = Path(folder).expanduser()
    found = [path / MANIFEST] if (path / MANIFEST).exists() else sorted(path.glob(f"*/{MANIFEST}"))
    if len(found) != 1:
        said = "none" if not found else ", ".join(str(one.parent) for one in found)
        raise UserError(
            f"analysis.factors_path: {path.absolute()}: expected one folder with {MANIFEST}, as a run writes"
            f" it under <run>/factors; got {said}. Name one, or leave it out to fit factors"
        )
    return found[0]


class InfluenceScores(InfluenceAnalysis):
    """How much each training block lowers the loss of each query, per module and token if wanted."""

    module: ClassVar[str] = "repro.analyses.influence_scores"
    splits_over: ClassVar[str | None] = "training blocks"
    kind: Literal["influence_scores"] = "influence_scores"

    def items(self, of: Of) -> int | None:
        return None


class InfluenceIdentities(InfluenceAnalysis):
    """What must hold of scores whatever the model, on the first `blocks` and `queries` of the data."""

    module: ClassVar[str] = "repro.analyses.influence_identities"
    kind: Literal["influence_identities"] = "influence_identities"
    blocks: Annotated[int, Field(ge=2)] = 12
    queries: PositiveInt = 4

    def cost(self, subject: Any, data: Any) -> Cost:
        return not_modelled(self.kind, "its cost is a few seconds on small models")
