"""Linear layer whose weight stores only its nonzeros."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sparsegnn import pattern as patterns
from sparsegnn.nn import copies, semi_structured
from sparsegnn.nn.dense_linear import dense_linear
from sparsegnn.nn.features import check_dtype, is_sparse, sparse_features
from sparsegnn.nn.sparse_weight import SparseWeight
from sparsegnn.ops.block_linear import apply as block_linear
from sparsegnn.ops.block_linear import may_round
from sparsegnn.ops.sparse_linear import apply as sparse_linear
from sparsegnn.ops.sparse_linear_probe import probed_linear


class SparseLinear(SparseWeight):
    """Drop-in for :class:`torch.nn.Linear` that keeps, and multiplies by, only some of the weights.

    ``y = x W^T + bias`` where W has ``values`` [nnz] at the positions ``pattern()`` and zeros elsewhere. ``weight`` is
    made of these whenever it is read, and can only be read.

    Args:
        in_features, out_features, bias, device, dtype: as for ``nn.Linear``; the input may have leading dimensions, or
            be a constant [N, in] ``torch.sparse_csr`` or coo tensor, which multiplies by its own nonzeros only.
        sparsity: fraction of weights that do not exist, in [0, 1); at least one weight stays.
        pattern: ``"unstructured"``; ``"fan_in"`` for the same number of inputs per output; ``"grouped:8"`` (4, 8, 16)
            where so many consecutive outputs share their inputs; ``"block:16x16"`` (16, 32) for dense blocks, whose
            sizes must divide those of the weight; ``"2:4"``, at a sparsity of 0.5 only, for two of every four inputs,
            which on a GPU in 16 bit torch's own semi-structured product multiplies by. Structure is faster at equal
            sparsity; on a layer over bag-of-words features it costs accuracy.

    The positions are drawn from torch's generator. Where so few weights are missing that dense kernels are faster, they
    run, on the weight with its zeros (``kernel``; :func:`sparsegnn.use_kernel` forces one).
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, sparsity: float = 0.9,
                 pattern: str = "unstructured", device=None, dtype=None):  # fmt: skip
        super().__init__(in_features, out_features, sparsity=sparsity, pattern=pattern, device=device, dtype=dtype)
        bias_value = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", bias_value)
        self.reset_parameters()

    @classmethod
    def from_dense(cls, linear: nn.Module, mask: Tensor | None = None, *, sparsity: float | None = None,
                   pattern: str = "unstructured") -> SparseLinear:  # fmt: skip
        """Sparse copy of ``linear``, anything with ``weight`` [out, in] and ``bias`` (or None).

        Keeps the weights where ``mask`` [out, in] is nonzero, or those of largest magnitude that ``sparsity`` leaves,
        or, with neither, those that are not zero.
        """
        weight, bias, learned = linear.weight.detach(), linear.bias, getattr(linear, "values", linear.weight)
        if mask is not None and sparsity is not None:
            raise ValueError("SparseLinear: mask and sparsity must not both be given")
        if mask is not None and mask.shape != weight.shape:
            raise ValueError(f"SparseLinear: mask must have shape {list(weight.shape)}, got {list(mask.shape)}")
        if sparsity is None:
            patterns.check_kind(pattern, "SparseLinear")
            crow, col = patterns.from_mask(weight if mask is None else mask.to(weight.device), pattern)
            weight = weight if mask is None else weight.where(mask.to(weight.device) != 0, 0)
        else:
            patterns.block_grid(*weight.shape, pattern, "SparseLinear")
            patterns.check_sparsity(sparsity, "SparseLinear", pattern)
            crow, col = patterns.from_dense_topk(weight, patterns.count_kept(*weight.shape, sparsity, pattern), pattern)
        layer = cls(*weight.shape[::-1], bias is not None, sparsity=0.5, pattern=pattern, device="meta")
        layer.values = nn.Parameter(weight.new_empty(0), requires_grad=learned.requires_grad)
        layer.set_pattern_(crow, col, patterns.gather(weight, crow, col, pattern))
        layer.shape = layer._shape(weight.device)
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        return layer.train(linear.training)

    def to_dense(self) -> nn.Linear:
        """The same layer as ``nn.Linear`` with zeros in its weight; a copy."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        linear.weight = nn.Parameter(self.dense_weight().detach().clone(), requires_grad=self.values.requires_grad)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach().clone(), requires_grad=self.bias.requires_grad)
        return linear.train(self.training)

    def reset_parameters(self) -> None:
        """As ``nn.Linear``, with the mean number of inputs that an output really has. The positions stay."""
        copies.unlink(self)
        bound = 1 / math.sqrt(max(1.0, self.values.numel() / self.out_features))
        for p in self.parameters(recurse=False):
            nn.init.uniform_(p, -bound, bound)

    @property
    def fusible(self) -> bool:
        """Whether a layer around this one may use the epilogue of ``sparse_linear``, which is all of a call."""
        return self.bias is None and self.bare

    @property
    def bare(self) -> bool:
        """Whether a call is one call of ``sparse_linear``."""
        self._settle()
        return self.block == (1, 1) and self.probe is None and self.kernel == "sparse"

    def forward(self, input: Tensor) -> Tensor:
        self._settle()
        if is_sparse(input):
            return sparse_features(self, input, self.bias)
        rows, kernel, probe = _as_rows(input, self.in_features, self._parameters.get("values")), self.kernel, self.probe
        probe = probe if probe is None or self.values.requires_grad else None  # frozen for this call
        if kernel != "2:4" and self.structure == "2:4" and rows.is_cuda:
            semi_structured.explain(self, kernel)
        if kernel == "2:4":
            weight = self.dense_weight() if probe is None else self.dense_weight() + probe
            return _as_shaped(semi_structured.linear(rows, weight, self.bias), input)
        if kernel == "sparse":
            p, b = self._parameters, self._buffers  # an attribute costs 0.6 us
            own = "values" in p and "bias" in p  # else pruned, or parametrized
            tensors = (p["values"], p["bias"]) if own else (self.values, self.bias)
            args = rows, *tensors, b["crow"], b["col"], b["ccol"], b["row"], b["perm"]
            if probe is not None and self.block == (1, 1):  # one dense product may serve both gradients
                return _as_shaped(probed_linear(*args, probe), input)
            y = sparse_linear(*args) if self.block == (1, 1) else block_linear(*args, *self.block, may_round(rows))
        elif self._all_exist():
            y = nn.functional.linear(rows, self.dense_weight(), self.bias)
        else:
            b = self._buffers
            y = dense_linear(rows, self.values, self.bias, (b["crow"], b["col"], self.in_features, *self.block))
        if probe is not None:  # adds zeros; backward leaves the dense gradient dy^T x in probe.grad
            y = y + torch.ops.sparsegnn.dense_probe(rows, probe)
        return y if rows is input else _as_shaped(y, input)

    def extra_repr(self) -> str:
        text = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        text += f", nnz={self.values.numel()}, sparsity={self.sparsity:.3f}"
        text += f", pattern={self.structure!r}" if self.structure != "unstructured" else ""
        return text + (", kernel='dense'" if self.kernel == "dense" else "")


@torch.fx.wrap  # one node of a traced graph, so that the check may look at the shape
def _as_rows(x: Tensor, features: int, values: Tensor | None) -> Tensor:
    if x.dim() == 0 or x.shape[-1] != features:
        raise ValueError(f"SparseLinear: input must have shape [..., {features}], got {list(x.shape)}")
    if values is not None and x.dtype != values.dtype:  # None: pruned, or parametrized
        check_dtype("SparseLinear", "input", x, values.dtype)
    return x if x.dim() == 2 else x.reshape(-1, features)


@torch.fx.wrap
def _as_shaped(y: Tensor, x: Tensor) -> Tensor:
    """``y`` with the leading dimensions of ``x``; not a view if it has them: adding to a view in place is costly."""
    return y if x.dim() == 2 else y.view(x.shape[:-1] + y.shape[-1:])
