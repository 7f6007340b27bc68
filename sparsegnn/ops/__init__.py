"""Differentiable sparse ops. The raw ops, on plain tensors, are ``torch.ops.sparsegnn.*``."""

from sparsegnn.ops.spmm import spmm as spmm
