"""Linear layers that read the same input, with their LoRA adapters, as one matrix product each way.

For members W_i [n_i, K] with adapters B_i A_i of rank r_i and scale s_i, one buffer in compute precision holds

    [ W   s B ]      W: all rows below each other [N, K];  s B: block-diagonal [N, R]
    [ A    .  ]      A: all A_i below each other [R, K]

so that y = [x | x A'] [W | s B]' and dx = [dy | dy s B] [W ; A]: the adapters ride along in the same product, in the
same float32 accumulator, and no weight in compute precision outlives its use.

With dropout, the adapters read the input without a share of its elements, one draw for all members (PEFT draws for
each); their part of dx is then a product of its own. The draw depends on a seed alone, so that the way back repeats it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.trainer.fast.pointwise import add_dropped, dropped
from training.trainer.fast.weights import write_weight

_ALIGNMENT = 64
"""columns of a row's stride: 128 bytes in 16 bits"""
_RANK_ALIGNMENT = 8
"""columns that the ranks are padded to: 16 bytes in 16 bits"""


class Workspace:
    """One buffer that groups of linears take turns in; `holder` is the group whose weights it holds."""

    def __init__(self) -> None:
        self.holder: LinearGroup | None = None
        self._size = 0
        self._buffer: Tensor | None = None

    def reserve(self, elements: int) -> None:
        """See to room for `elements`, before the first use."""
        self._size = max(self._size, elements)

    def matrix(self, rows: int, columns: int, like: Tensor) -> Tensor:
        """The buffer as [rows, columns], of the type and on the device of `like`."""
        if self._buffer is None or self._buffer.dtype != like.dtype or self._buffer.device != like.device:
            self._buffer = torch.empty(self._size, dtype=like.dtype, device=like.device)
            self.holder = None
        return self._buffer[: rows * columns].view(rows, columns)


@dataclass(frozen=True, slots=True)
class Member:
    """A linear of a group; `a` [r, K] and `b` [n, r] are None where it has no adapter."""

    base: Any
    a: nn.Parameter | None
    b: nn.Parameter | None
    scale: float

    @property
    def rank(self) -> int:
        """The adapter's rank, 0 without one."""
        return 0 if self.a is None else self.a.shape[0]


class LinearGroup:
    """The matrix of the module's docstring. T is the number of tokens, N all outputs, K inputs, R the padded ranks."""

    def __init__(
        self, members: Sequence[Member], sizes: Sequence[tuple[int, int]], workspace: Workspace, dropout: float = 0.0
    ) -> None:
        self.members = tuple(members)
        self.dropout = dropout
        self.outputs = sum(rows for rows, _ in sizes)
        self.inputs = sizes[0][1]
        self.ranks = _round_up(sum(member.rank for member in members), _RANK_ALIGNMENT)
        self._rows = [rows for rows, _ in sizes]
        self._stride = _round_up(self.inputs + self.ranks, _ALIGNMENT)
        self._workspace = workspace
        self._loaded: Tensor | None = None
        workspace.reserve((self.outputs + self.ranks) * self._stride)
        self.bias = self._biases()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The adapters' parameters, A before B, in the order of `adapter_gradients`."""
        return [p for member in self.members for p in (member.a, member.b) if p is not None]

    def input_buffer(self, like: Tensor) -> Tensor:
        """Room for [x | x A'], [T, K + R]; T and the type from `like`."""
        return like.new_empty(like.shape[0], self.inputs + self.ranks)

    def output_buffer(self, like: Tensor) -> Tensor:
        """Room for [y | .], which becomes [dy | dy s B], [T, N + R]."""
        return like.new_empty(like.shape[0], self.outputs + self.ranks)

    def load(self, like: Tensor, *, anew: bool) -> None:
        """Fill the workspace; not `anew`: only if another group was there (adapters change between steps only)."""
        self._loaded = matrix = self._workspace.matrix(self.outputs + self.ranks, self._stride, like)
        if self._workspace.holder is self and not anew:
            return
        self._workspace.holder = self
        n, k = self.outputs, self.inputs
        if self.ranks:
            matrix[:n, k : k + self.ranks].zero_()
            matrix[n + sum(member.rank for member in self.members) :, :k].zero_()
        row = rank = 0
        for member, rows in zip(self.members, self._rows, strict=True):
            write_weight(member.base, matrix[row : row + rows, :k])
            if member.a is not None and member.b is not None:
                columns = slice(k + rank, k + rank + member.rank)
                torch.mul(member.b.detach(), member.scale, out=matrix[row : row + rows, columns])
                matrix[n + rank : n + rank + member.rank, :k] = member.a.detach()
                rank += member.rank
            row += rows

    def forward(self, x: Tensor, seed: int, *, out: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """The outputs [T, N], plus `residual`; `x` is an `input_buffer` with its first K columns filled."""
        if self.ranks:
            torch.mm(self._read(x[:, : self.inputs], seed), self._a.t(), out=x[:, self.inputs :])
        weight = self._matrix[: self.outputs, : self.inputs + self.ranks].t()
        if residual is not None:
            return torch.addmm(residual, x, weight)
        if self.bias is not None:
            self.bias = self.bias.to(x)
            return torch.addmm(self.bias, x, weight)
        return torch.mm(x, weight) if out is None else torch.mm(x, weight, out=out)

    def input_gradient(self, gradient: Tensor, seed: int) -> Tensor:
        """Gradient of x [T, K]; `gradient` is an `output_buffer` with dy in its first N columns, and filled here."""
        n, k = self.outputs, self.inputs
        if self.ranks:
            torch.mm(gradient[:, :n], self._matrix[:n, k : k + self.ranks], out=gradient[:, n:])
        if not self.ranks or not self.dropout:
            return torch.mm(gradient, self._matrix[: n + self.ranks, :k])
        through = torch.mm(gradient[:, :n], self._matrix[:n, :k])
        add_dropped(torch.mm(gradient[:, n:], self._a), through, self.dropout, seed)
        return through

    def adapter_gradients(self, gradient: Tensor, x: Tensor, seed: int) -> list[Tensor]:
        """Of every member that of A, then of B, in float32; `gradient` as `input_gradient` left it, `x` [T, K]."""
        if not self.ranks:
            return []
        read = self._read(x, seed)
        of_a = gradient[:, self.outputs :].t() @ read
        of_b = gradient[:, : self.outputs].t() @ (read @ self._a.t())
        found, row, rank = [], 0, 0
        for member, rows in zip(self.members, self._rows, strict=True):
            if member.a is not None and member.b is not None:
                ranks = slice(rank, rank + member.rank)
                found.append(of_a[ranks].to(member.a.dtype))
                found.append(of_b[row : row + rows, ranks].to(member.b.dtype) * member.scale)
                rank += member.rank
            row += rows
        return found

    def _read(self, x: Tensor, seed: int) -> Tensor:
        return dropped(x, self.dropout, seed) if self.dropout else x

    @property
    def _matrix(self) -> Tensor:
        if self._loaded is None:
            raise RuntimeError("load comes first")
        return self._loaded

    @property
    def _a(self) -> Tensor:
        """All A_i, [R, K]."""
        return self._matrix[self.outputs : self.outputs + self.ranks, : self.inputs]

    def _biases(self) -> Tensor | None:
        biases = [getattr(member.base, "bias", None) for member in self.members]
        if all(bias is None for bias in biases):
            return None
        pairs = zip(biases, self._rows, strict=True)
        like = next(bias for bias in biases if bias is not None)
        return torch.cat([like.new_zeros(rows) if bias is None else bias.detach() for bias, rows in pairs])


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
