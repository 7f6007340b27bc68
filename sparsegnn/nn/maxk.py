"""MaxK: keep the k largest features of every node (Peng et al., ASPLOS 2024, https://arxiv.org/abs/2312.08656)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import InitVar, dataclass

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsegnn.ops._compressed import check_rows
from sparsegnn.ops._library import check
from sparsegnn.ops.maxk import check_k, maxk


@dataclass(eq=False, repr=False)
class CompressedRows:
    """Rows ``[N, width]`` of which only ``values`` [N, k] at the columns ``index`` [N, k] are not zero.

    What ``MaxK(compressed=True)`` hands to a layer that sums over neighbours, as :class:`GCNConv`, which aggregates
    k features per edge then instead of all. Columns are distinct and ascending within rows, which is checked unless
    ``trusted``, for which the host waits for a GPU; do not write to ``index`` later.
    """

    values: Tensor
    index: Tensor
    width: int
    group: int = 0  # columns of a group, each of which keeps equally many; 0: rows are not grouped
    trusted: InitVar[bool] = False

    def __post_init__(self, trusted: bool) -> None:
        if not trusted:
            self.group = check_rows("CompressedRows", self.values, self.index, self.width, self.group)

    def __setstate__(self, state: dict) -> None:
        """Checks what is loaded, which may come from an untrusted file: ``torch.load(weights_only=True)`` takes it."""
        self.__init__(*(state.get(name) for name in ("values", "index", "width", "group")))

    def to_dense(self) -> Tensor:
        """``[N, width]``; differentiable."""
        return torch.ops.sparsegnn.maxk_expand(self.values, self.index, self.width)

    def map(self, function: Callable[[Tensor], Tensor]) -> CompressedRows:
        """With ``function(values)``: of an elementwise function that keeps zeros, such as dropout."""
        values = function(self.values)
        check("CompressedRows", "values", values, tuple(self.index.shape), self.index)
        return CompressedRows(values, self.index, self.width, self.group, trusted=True)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        """Dropout, which keeps zeros, of compressed rows is compressed; any other function wants a tensor."""
        if function is not nn.functional.dropout or not isinstance(args[0], cls):
            return NotImplemented
        return args[0].map(lambda values: function(values, *args[1:], **(kwargs or {})))

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.values.shape[0], self.width))

    def dim(self) -> int:
        return 2

    def size(self, dim: int | None = None):
        return self.shape if dim is None else self.shape[dim]

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def requires_grad(self) -> bool:
        return self.values.requires_grad

    def __repr__(self) -> str:
        return f"CompressedRows({list(self.shape)}, k={self.values.shape[1]}, dtype={self.dtype}, device={self.device})"


pytree.register_pytree_node(
    CompressedRows,
    lambda rows: ([rows.values, rows.index], (rows.width, rows.group)),
    lambda children, context: CompressedRows(*children, *context, trusted=True),
    serialized_type_name="sparsegnn.nn.CompressedRows",
)
torch.serialization.add_safe_globals([CompressedRows])


class MaxK(nn.Module):
    """Keep the ``k`` largest features of every row, by value; the others become zero, and so do their gradients.

    Args:
        k: features to keep. The paper keeps the accuracy of ReLU with 32 of 256.
        group: keep equally many, ``k * group / F``, of every ``group`` neighbouring features; None: of all.
        compressed: return :class:`CompressedRows` for the graph layer behind it, instead of a tensor with zeros.

    In a network: ``conv2(MaxK(32, compressed=True)(conv1(x, graph)), graph)``.
    """

    def __init__(self, k: int, group: int | None = None, compressed: bool = False):
        super().__init__()
        check_k("MaxK", k, None, 1 << 15)
        self.k, self.group, self.compressed = int(k), group if group is None else int(group), compressed

    def forward(self, x: Tensor) -> Tensor | CompressedRows:
        """``x`` [..., F], floating point; [N, F] when ``compressed``."""
        if not isinstance(x, Tensor) or x.dim() < 1 or (self.compressed and x.dim() != 2):
            got = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"MaxK: x must be a Tensor of shape [{'N' if self.compressed else '...'}, F], got {got}")
        width = x.size(-1)
        rows = CompressedRows(*maxk(x.reshape(-1, width), self.k, self.group), width, self.group or 0, trusted=True)
        return rows if self.compressed else rows.to_dense().view(x.shape)

    def extra_repr(self) -> str:
        text = f"{self.k}" + ("" if self.group is None else f", group={self.group}")
        return text + (", compressed=True" if self.compressed else "")


def dense(x):
    """``x`` without compression, if it has any."""
    return x.to_dense() if isinstance(x, CompressedRows) else x
