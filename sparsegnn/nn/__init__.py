"""Layers with sparse weights, drop-in for those of PyTorch and PyG."""

from sparsegnn.nn.linear import SparseLinear as SparseLinear
