"""Sums over positions of one module: covariances, gradients of blocks, and their products with queries.

Axes: B blocks, T positions, Q queries, K rank; a [B, T, features] a module's input, g [B, T, outputs] the
gradient of a block's loss with respect to its output. A block's gradient is G_n = sum over t of g a', where a
has a trailing 1 if the module has a bias; it is never written where a product can be had without it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from repro.analyses.influence.modules import Tracked

# On a CPU, and on a GPU, which wants larger pieces:
BLOCK, GPU_BLOCK = 128, 1536  # rows of a block of a symmetric sum
CHUNK, GPU_CHUNK = 2**20, 2**28  # numbers of an intermediate product
ROWS = 256  # positions in one of them
GRADIENTS = 2**26  # numbers of query gradients made whole again at a time


def add_symmetric(total: Tensor, x: Float[Tensor, "row column"]) -> None:
    """Add x'x to the upper blocks of a symmetric sum: half the work of all of it. See `symmetric`."""
    size, step = x.shape[1], GPU_BLOCK if x.is_cuda else BLOCK
    for begin in range(0, size, step):
        end = min(begin + step, size)
        total[begin:end, begin:].addmm_(x[:, begin:end].T, x[:, begin:])


def symmetric(total: Tensor) -> Tensor:
    """The whole matrix, in float64, of what `add_symmetric` summed."""
    upper = total.double().triu()
    return upper + upper.triu(1).T


def add_inputs(total: Tensor, a: Tensor, count: int, bias: bool) -> None:
    """Add the sum over positions of a a' to [inputs, inputs], of which the last column stands for the ones.

    count: positions that are no padding; at those a is zero.
    """
    flat = a.flatten(0, 1)
    size = flat.shape[1]
    add_symmetric(total[:size, :size], flat)
    if bias:
        total[:size, size] += flat.sum(0)
        total[size, size] += count


def rotated(
    x: Float[Tensor, "block position column"], basis: Float[Tensor, "column eigen"], bias: bool = False
) -> Float[Tensor, "block position eigen"]:
    """x in an eigenbasis; with a bias x has a trailing 1."""
    flat, size = x.flatten(0, 1), x.shape[-1]
    found = torch.addmm(basis[size], flat, basis[:size]) if bias else flat @ basis
    return found.unflatten(0, x.shape[:2])


def rotated_gradients(
    a: Tensor, g: Tensor, left: Float[Tensor, "outputs outputs"], right: Float[Tensor, "inputs inputs"]
) -> Float[Tensor, "block outputs inputs"]:
    """Q_S' G_n Q_A of each block: positions first, or the gradient first, whichever is less work."""
    length, outputs, inputs = a.shape[1], left.shape[0], right.shape[0]
    if length * (outputs**2 + inputs**2) <= outputs * inputs * (outputs + inputs):
        bias = a.shape[-1] < inputs
        return torch.bmm(rotated(g, left).mT, rotated(a, right, bias))
    return left.T @ gradients(a, g, inputs) @ right


def gradients(a: Tensor, g: Tensor, inputs: int) -> Float[Tensor, "block outputs inputs"]:
    """G_n of each block, with its bias column if there is one."""
    if a.shape[-1] == inputs:
        return torch.bmm(g.mT, a)
    found = a.new_empty(len(a), g.shape[-1], inputs)
    found[..., :-1] = torch.bmm(g.mT, a)
    found[..., -1] = g.sum(1)
    return found


def add_squares(total: Float[Tensor, "outputs inputs"], found: Float[Tensor, "block outputs inputs"]) -> None:
    """Add the squares of all blocks, block by block while they are near the processor."""
    if total.dtype == torch.bfloat16:  # whose sums over blocks are taken in float32 and rounded once
        total += found.square().sum(0)
        return
    for one in found:
        total.addcmul_(one, one)


class Preconditioned:
    """P(G_q) of some queries and one module, whole or cut to a rank, and its products with training blocks.

    whole: [Q, outputs, inputs]; or left [Q, outputs, K] and right [Q, K, inputs], whose product it is.
    """

    def __init__(
        self, of: Tracked, whole: Tensor | None, factors: tuple[Tensor, Tensor] | None = None
    ) -> None:
        self._of, self._factors, self._weight, self._bias = of, factors, None, None
        if whole is not None:
            self._weight, self._bias = _split(whole, of)

    @classmethod
    def joined(cls, parts: list[Preconditioned]) -> Preconditioned:
        """Those of several batches of queries."""
        first = parts[0]
        if len(parts) == 1:
            return first
        made = cls(first._of, None)
        if first._factors is not None:
            made._factors = (
                torch.cat([part._factors[0] for part in parts if part._factors]),
                torch.cat([part._factors[1] for part in parts if part._factors]),
            )
            return made
        made._weight = torch.cat([part._weight for part in parts if part._weight is not None])
        if first._bias is not None:
            made._bias = torch.cat([part._bias for part in parts if part._bias is not None])
        return made

    def __len__(self) -> int:
        one = self._factors[0] if self._factors is not None else self._weight
        assert one is not None
        return len(one)

    def summed(self) -> Preconditioned:
        """P of the sum of all queries' gradients: it is linear."""
        assert self._weight is not None
        made = Preconditioned(self._of, None)
        made._weight = self._weight.sum(0, keepdim=True)
        made._bias = None if self._bias is None else self._bias.sum(0, keepdim=True)
        return made

    def scores(self, a: Tensor, g: Tensor) -> Float[Tensor, "query block"]:
        """<P(G_q), G_n> for each query and block, the cheapest way."""
        (rows, length), of, queries = a.shape[:2], self._of, len(self)
        by_token = rows * length * queries * of.entries
        by_gradient = of.entries * rows * (length + queries)
        if self._factors is not None:
            rank = self._factors[0].shape[-1]
            by_token = rows * length * queries * rank * (of.outputs + of.inputs)
            by_gradient += of.entries * queries * rank
        if by_token <= by_gradient:
            return self.by_token(a, g).sum(-1)
        found, sums = torch.bmm(g.mT, a).flatten(1), g.sum(1)
        if self._factors is None:
            return _product(self._weight, self._bias, found, sums)
        left, right = self._factors
        return torch.cat(
            [
                _product(*_split(left[at] @ right[at], of), found, sums)
                for at in _pieces(queries, of.entries, GRADIENTS)
            ]
        )

    def by_token(self, a: Tensor, g: Tensor) -> Float[Tensor, "query block position"]:
        """g' P(G_q) a of each position. Its sum over positions is the score."""
        rows, length = a.shape[:2]
        flat_a, flat_g = a.flatten(0, 1), g.flatten(0, 1)
        found = a.new_empty(len(flat_a), len(self))
        if self._factors is not None:
            self._by_token_in_factors(flat_a, flat_g, found)
        else:
            self._by_token_whole(flat_a, flat_g, found)
        return found.T.reshape(len(self), rows, length)

    def _by_token_whole(self, a: Tensor, g: Tensor, found: Tensor) -> None:
        """The longer side is summed over by a matrix product, the shorter one afterwards.

        So many queries at a time that what is between the two stays near the processor.
        """
        assert self._weight is not None
        queries, outputs, features = self._weight.shape
        by_outputs = outputs >= features
        inner, outer, short = (g, a, features) if by_outputs else (a, g, outputs)
        rows = min(len(a), ROWS)
        for some in _pieces(queries, rows * short, _chunk(a)):
            weight = self._weight[some]
            weight = weight.transpose(0, 1) if by_outputs else weight.permute(2, 0, 1)
            matrix = weight.flatten(1)
            for at in _pieces(len(a), 1, rows):
                product = (inner[at] @ matrix).unflatten(1, (-1, short))
                found[at, some] = torch.bmm(product, outer[at, :, None])[..., 0]
        if self._bias is not None:
            found.addmm_(g, self._bias.T)

    def _by_token_in_factors(self, a: Tensor, g: Tensor, found: Tensor) -> None:
        assert self._factors is not None
        left, right = self._factors
        queries, _, rank = left.shape
        out = left.transpose(0, 1).reshape(left.shape[1], -1)
        weight = right[..., : a.shape[1]].permute(2, 0, 1).reshape(a.shape[1], -1)
        for at in _pieces(len(a), queries * rank, _chunk(a)):
            inside = a[at] @ weight
            if self._of.bias:
                inside += right[..., -1].reshape(-1)
            found[at] = ((g[at] @ out) * inside).unflatten(1, (queries, rank)).sum(-1)


def _split(whole: Tensor, of: Tracked) -> tuple[Tensor, Tensor | None]:
    """The columns of the weight, and that of the bias."""
    bias = whole[..., of.features].contiguous() if of.bias else None
    return whole[..., : of.features].contiguous(), bias


def _product(weight: Tensor | None, bias: Tensor | None, found: Tensor, sums: Tensor) -> Tensor:
    """Inner products of queries with block gradients found [B, outputs * features] and their bias columns."""
    assert weight is not None
    score = weight.flatten(1) @ found.T
    return score if bias is None else score.addmm_(bias, sums.T)


def _chunk(x: Tensor) -> int:
    return GPU_CHUNK if x.is_cuda else CHUNK


def _pieces(count: int, each: int, most: int) -> list[slice]:
    """Neighbouring ones, so many that their intermediate results are at most `most` numbers."""
    size = max(1, most // each)
    return [slice(begin, begin + size) for begin in range(0, count, size)]


def low_rank(
    whole: Float[Tensor, "query outputs inputs"], rank: int, exact: bool, seed: int, passes: int = 2
) -> tuple[Float[Tensor, "query outputs rank"], Float[Tensor, "query rank inputs"]]:
    """The best approximation of this rank, by SVD in float32 (float64 stays); randomised unless `exact`.

    Randomised (Halko et al. 2011): a random subspace of rank + 8, `passes` power iterations. The same one for
    all queries, so that batches of queries change nothing.
    """
    kind = whole.dtype
    matrix = whole if kind == torch.float64 else whole.float()
    basis = None
    if not exact:
        size = min(rank + 8, *matrix.shape[1:])
        generator = torch.Generator().manual_seed(seed)
        test = torch.randn(matrix.shape[2], size, generator=generator, dtype=torch.float64).to(matrix)
        basis = torch.linalg.qr(matrix @ test)[0]
        for _ in range(passes):
            basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.mT @ basis)[0])[0]
        matrix = basis.mT @ matrix
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    left = (left if basis is None else basis @ left)[..., :rank] * values[:, None, :rank]
    return left.to(kind).contiguous(), right[:, :rank].to(kind).contiguous()
