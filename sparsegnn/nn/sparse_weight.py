"""A weight matrix held as its nonzeros: one parameter, int32 positions, and how both are replaced, moved and loaded."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsegnn import pattern as patterns
from sparsegnn import plans

SAVED = ("values", "crow", "col", "shape")
DERIVED = ("ccol", "row", "perm")  # the transpose: not saved, rebuilt whenever the positions change


class SparseWeight(nn.Module):
    """Base of layers with a sparse weight [out_features, in_features].

    ``values`` [nnz] is an ordinary 1-D parameter, so optimizers, AMP, DDP, ``deepcopy`` and safetensors need nothing
    special. ``crow`` and ``col`` are saved with it; ``ccol, row, perm`` is their transpose.
    """

    def __init__(self, in_features: int, out_features: int, *, sparsity: float, pattern: str, device, dtype):
        super().__init__()
        op = type(self).__name__
        patterns.check_sparsity(sparsity, op)
        self.in_features, self.out_features = in_features, out_features
        self.structure = patterns.check_kind(pattern, op)
        crow, col = patterns.random_pattern(out_features, in_features, sparsity=sparsity, kind=pattern, device=device)
        self.values = nn.Parameter(torch.empty(col.numel(), device=device, dtype=dtype))
        for name in ("crow", "col", *DERIVED):
            self.register_buffer(name, None, persistent=name not in DERIVED)
        self.register_buffer("flat", None, persistent=False)  # positions, where the dense kernel runs
        self.register_buffer("shape", self._shape(crow.device))  # or a narrower checkpoint would load unnoticed
        self._place(crow, col)

    def _shape(self, device: torch.device) -> Tensor:
        return torch.tensor([self.out_features, self.in_features], dtype=torch.int32, device=device)

    @property
    def sparsity(self) -> float:
        """Fraction of the weights that do not exist."""
        return 1 - self.values.numel() / (self.in_features * self.out_features)

    def pattern(self) -> tuple[Tensor, Tensor]:
        """``(crow, col)``: where the weights are."""
        return self.crow, self.col

    def dense_weight(self) -> Tensor:
        """The weight [out_features, in_features] with its zeros, differentiable in ``values``; a view if all exist."""
        size = self.out_features * self.in_features
        if self.values.numel() == size:  # all there: in CSR order already
            return self.values.view(self.out_features, self.in_features)
        zeros = self.values.new_zeros(size)
        return zeros.index_copy_(0, self._positions(), self.values).view(self.out_features, self.in_features)

    def _positions(self) -> Tensor:
        """int64 positions [nnz] in the flat weight; kept once made."""
        if self.flat is not None:
            return self.flat
        flat = patterns.rows_of(self.crow, self.col) * self.in_features + self.col
        if not torch.compiler.is_compiling():
            self.flat = flat
        return flat

    @torch.no_grad()
    def set_pattern_(self, crow: Tensor, col: Tensor, values: Tensor) -> None:
        """Put ``values`` [nnz] at the positions ``(crow, col)``.

        With as many weights as before every tensor keeps its storage. With another number ``values`` remains the same
        Parameter object, on new storage and without a gradient.
        """
        op = type(self).__name__
        patterns.check_pattern(crow, col, self.out_features, self.in_features, op)
        if values.shape != col.shape:
            raise ValueError(f"{op}: values must have shape {list(col.shape)}, got {list(values.shape)}")
        if self.structure == "fan_in" and not crow.is_meta and crow.diff().unique().numel() != 1:
            raise ValueError(f"{op}: crow must give every output as many inputs (pattern 'fan_in'), got other counts")
        if values.shape != self.values.shape:
            self._resize_values(values.shape)
        self.values.copy_(values)
        self._place(crow, col)

    @torch.no_grad()
    def rewire_(self, drop_score: Tensor, grow_score: Tensor, n: int) -> Tensor:
        """Drop the ``n`` weights of lowest ``drop_score`` [nnz], grow ``n`` of highest ``grow_score`` [out, in].

        Grown weights are zero, one that was just dropped may return with its value. In place, without host
        synchronisation. Returns ``source`` [nnz]: where each weight was before, -1 for a new one.
        """
        source = torch.ops.sparsegnn.topology_(self.crow, self.col, drop_score, grow_score, n)
        self.values.copy_(patterns.rearrange(self.values, source))
        self._place(self.crow, self.col)
        return source

    def _resize_values(self, shape: torch.Size) -> None:
        """The same Parameter object on new storage, without a gradient."""
        new = self.values.new_empty(shape)
        other = torch.float32 if self.values.dtype == torch.float64 else torch.float64
        # Autograd keeps the node of a parameter, with its old shape, while a loss of an earlier step is alive; only a
        # change of the dtype makes it forget that node.
        self.values.data = new.to(other)
        self.values.data, self.values.grad = new, None

    def _place(self, crow: Tensor, col: Tensor) -> None:
        """Store positions and their transpose, in place where they fit."""
        self._follow_policy(col.numel())
        derived = torch.ops.sparsegnn.csr_transpose(crow, col, self.in_features)
        for name, new in zip(("crow", "col", *DERIVED), (crow, col, *derived), strict=True):
            old = getattr(self, name)
            if old is new:
                continue
            if old is not None and old.shape == new.shape and old.device == new.device:
                old.copy_(new)
            else:
                setattr(self, name, new)
        if self.flat is not None:
            known, self.flat = self.flat, None
            new = self._positions()
            self.flat = known.copy_(new) if known.shape == new.shape and known.device == new.device else new

    def _apply(self, fn, recurse=True):
        deferred = self.crow.is_meta
        super()._apply(fn, recurse)
        if deferred and not self.crow.is_meta:  # to_empty() of a meta layer: its positions are uninitialised memory
            size = {"nnz": self.values.numel(), "kind": self.structure, "device": self.crow.device}
            self._place(*patterns.random_pattern(self.out_features, self.in_features, **size))
            self.shape = self._shape(self.crow.device)
        self._follow_policy(self.values.numel())
        return self

    def _follow_policy(self, nnz: int) -> None:
        """Look up the kernel that the static policy gives to so many weights of this dtype."""
        self._static = plans.static_kernel(nnz, (self.out_features, self.in_features), self.values.dtype)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        op, mine = type(self).__name__, [self.out_features, self.in_features]
        values, crow, col, shape = (state_dict.get(prefix + k, getattr(self, k)) for k in SAVED)
        if not shape.is_meta and shape.tolist() != mine:
            raise ValueError(f"{op}: checkpoint '{prefix}shape' must be {mine}, got {shape.tolist()}")
        patterns.check_pattern(crow, col, *mine, f"{op}: checkpoint '{prefix.rstrip('.')}'")
        if values.shape != col.shape:
            want, got = list(col.shape), list(values.shape)
            raise ValueError(f"{op}: checkpoint '{prefix}values' must have shape {want}, got {got}")
        if col.shape != self.col.shape:  # another number of weights: same Parameter object, new storage
            self._resize_values(col.shape)
            self.col = self.col.new_empty(col.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._place(self.crow, self.col)
