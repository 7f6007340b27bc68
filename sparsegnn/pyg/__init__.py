"""Models of PyG on this library's kernels. Nothing here imports PyG: a model of its has done so."""

from sparsegnn.pyg.accelerate import accelerate as accelerate
