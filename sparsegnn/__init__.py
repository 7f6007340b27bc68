"""Sparse graph neural networks that are fast, not just masked."""

from sparsegnn import _native
from sparsegnn._version import __version__ as __version__

_native.load()

from sparsegnn import ops as ops  # noqa: E402  (the libraries come first)
