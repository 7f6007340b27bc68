"""A weight matrix held as its nonzeros: one parameter, int32 positions, and how both are replaced and moved."""

from __future__ import annotations

from itertools import zip_longest

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from sparsegnn import pattern as patterns
from sparsegnn.nn import exported, storage
from sparsegnn.nn.checks import check_size
from sparsegnn.nn.fit import DERIVED
from sparsegnn.nn.moves import Move, check_own
from sparsegnn.nn.positions import Positions
from sparsegnn.nn.read_only import read_only
from sparsegnn.ops.dense_weight import apply as dense_weight


class SparseWeight(Positions):
    """Base of layers with a sparse weight [out_features, in_features].

    ``values`` [nnz] is an ordinary 1-D parameter, so optimizers, AMP, DDP, ``deepcopy`` and safetensors need nothing
    special. ``crow`` and ``col`` are saved with it; ``ccol, row, perm`` is their transpose. A structure of blocks has
    the positions of ``block`` = (height, width) weights each, and ``values`` block after block.
    """

    def __init__(self, in_features: int, out_features: int, *, sparsity: float, pattern: str, device, dtype):
        super().__init__()
        op = type(self).__name__
        patterns.check_sparsity(sparsity, op, pattern)
        in_features = check_size(op, "in_features", in_features, 0)
        out_features = check_size(op, "out_features", out_features, 0)
        self.in_features, self.out_features = in_features, out_features
        self.structure = patterns.check_kind(pattern, op)
        self.block = patterns.BLOCKS[pattern]
        self.grid = patterns.block_grid(out_features, in_features, pattern, op)
        crow, col = patterns.random_pattern(out_features, in_features, sparsity=sparsity, kind=pattern, device=device)
        self.values = nn.Parameter(torch.empty(self.weights_of(col), device=device, dtype=dtype))
        for name in ("crow", "col", *DERIVED):
            self.register_buffer(name, None, persistent=name not in DERIVED)
        self.register_buffer("shape", self._shape(crow.device))  # or a narrower checkpoint would load unnoticed
        self._place(crow, col)
        self.probe: Tensor | None = None  # [out, in] requiring grad, while a controller wants the dense gradient

    @property
    def sparsity(self) -> float:
        """Fraction of the weights that do not exist."""
        return 1 - self.values.numel() / (self.in_features * self.out_features)

    def pattern(self) -> tuple[Tensor, Tensor]:
        """``(crow, col)``: where the weights, or the blocks of weights, are."""
        self._settle(values=False)
        return self.crow, self.col

    def dense_weight(self) -> Tensor:
        """The weight [out_features, in_features] with its zeros, differentiable in ``values``; a view if all exist."""
        self._settle()
        if self._all_exist():
            return self.values.view(self.out_features, self.in_features)
        make = exported.dense_weight if exported.exporting() else dense_weight
        return make(self.values, self.crow, self.col, self.in_features, *self.block)

    @property
    def weight(self) -> Tensor:
        """:meth:`dense_weight`, for code that reads the weight of an ``nn.Linear``; a write to it raises."""
        return read_only(self.dense_weight())

    def _all_exist(self) -> bool:
        """Whether ``values`` is the dense weight: in CSR order it is in that of a matrix."""
        return self.block == (1, 1) and self.col.numel() == self.out_features * self.in_features

    @torch.no_grad()
    def set_pattern_(self, crow: Tensor, col: Tensor, values: Tensor) -> None:
        """Put ``values`` [nnz] at the positions ``(crow, col)``.

        With as many weights as before every tensor keeps its storage. With another number ``values`` remains the same
        Parameter object, on new storage and without a gradient. Where memory runs out nothing has changed.
        """
        op = type(self).__name__
        check_own(self)
        patterns.check_pattern(crow, col, *self.grid, op)
        if values.shape != (self.weights_of(col),):
            raise ValueError(f"{op}: values must have shape [{self.weights_of(col)}], got {list(values.shape)}")
        patterns.check_regular(crow, col, self.in_features, self.structure, op)
        derived, move = self._derive(crow, col), Move(self)
        move.by_position(crow, col, values)
        self._rewired = self._rewired or self.values.numel() > 0  # not of from_dense()
        if values.shape != self.values.shape:
            storage.resize_(self.values, values.shape)
        self.values.copy_(values)
        self._place(crow, col, derived)
        move.done()

    @torch.no_grad()
    def rewire_(self, drop_score: Tensor, grow_score: Tensor, n: int | Tensor, carried=(), fresh=()) -> Tensor:
        """Drop the ``n`` weights of lowest ``drop_score`` [nnz], grow ``n`` of highest ``grow_score`` [out, in].

        Grown weights are zero, one that was just dropped may return with its value; tensors ``carried`` [nnz] go along,
        grown ones from ``fresh`` numbers (else 0). In place, without waiting for a GPU, ``n`` an int64 tensor [] too;
        where memory runs out nothing has changed. Returns ``source``, one per entry of ``col``: where it was before, -1
        for a new one. Blocks move as a whole, by the sums of their scores; ``"fan_in"`` moves ``n // out`` of every
        output, ``"2:4"`` one each of ``n`` fours.
        """
        check_own(self)
        crow, col = self.crow, self.col
        if self.structure in patterns.REGULAR:
            if self.structure == "fan_in" and not crow.is_cuda:
                with _disable_current_modes():  # on a CPU nobody waits for it
                    patterns.check_even(crow, type(self).__name__)
            col = col.clone()
            source = patterns.rewire_regular_(self.structure, col, drop_score, grow_score, n)
        else:
            if self.block != (1, 1):
                grow_score = patterns.block_sums(grow_score, self.structure)
            n = n if isinstance(n, Tensor) else torch.full((), n, device=col.device)
            crow, col = crow.clone(), col.clone()
            source = torch.ops.sparsegnn.topology_(crow, col, self.per_position(drop_score), grow_score, n)
        move = Move(self)
        tensors = zip_longest((self.values, *carried), (0, *fresh), fillvalue=0)
        moving = patterns.mover(source)
        moved = [(t, moving(t, start)) for t, start in tensors] + move.by_source(source)
        derived = self._derive(crow, col, check=False)  # no memory is needed from here on
        torch._foreach_copy_([t for t, _ in moved], [new for _, new in moved])
        self._place(crow, col, derived)
        self._rewired = True
        move.done()
        return source

    def restructure_(self, pattern: str) -> None:
        """From now on keep ``pattern``, one without blocks; the weights must be at positions of it already."""
        op, sizes = type(self).__name__, (self.out_features, self.in_features)
        if patterns.BLOCKS[patterns.check_kind(pattern, op)] != self.block:
            raise ValueError(f"{op}: pattern must have the blocks of {self.structure!r}, got {pattern!r}")
        patterns.block_grid(*sizes, pattern, op)
        patterns.check_regular(*self.pattern(), self.in_features, pattern, op)
        self.structure = pattern
        self._follow_policy(self.values.numel())

    def per_position(self, score: Tensor) -> Tensor:
        """Sums of ``score`` [nnz] over the weights of each entry of ``col``."""
        return score if self.block == (1, 1) else score.view(self.col.numel(), -1).sum(1)
