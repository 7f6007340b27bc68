"""Sparse graph neural networks that are fast, not just masked."""

from sparsegnn import _native
from sparsegnn._malloc import keep_memory as keep_memory
from sparsegnn._native import empty_cache as empty_cache
from sparsegnn._version import __version__ as __version__

_native.load()

from sparsegnn import ops as ops  # noqa: E402  (the libraries come first)
from sparsegnn.capture import CapturedStep as CapturedStep  # noqa: E402
from sparsegnn.compact import compact as compact  # noqa: E402
from sparsegnn.compact import dead_units as dead_units  # noqa: E402
from sparsegnn.controllers import SET as SET  # noqa: E402
from sparsegnn.controllers import Controller as Controller  # noqa: E402
from sparsegnn.controllers import GradualMagnitude as GradualMagnitude  # noqa: E402
from sparsegnn.controllers import Rewiring as Rewiring  # noqa: E402
from sparsegnn.controllers import RigL as RigL  # noqa: E402
from sparsegnn.controllers import StaticSparse as StaticSparse  # noqa: E402
from sparsegnn.convert import densify as densify  # noqa: E402
from sparsegnn.convert import sparsify as sparsify  # noqa: E402
from sparsegnn.graph import CSRGraph as CSRGraph  # noqa: E402
from sparsegnn.policy import use_kernel as use_kernel  # noqa: E402
from sparsegnn.pyg import accelerate as accelerate  # noqa: E402
from sparsegnn.report import flops as flops  # noqa: E402
from sparsegnn.report import info as info  # noqa: E402
from sparsegnn.report import summary as summary  # noqa: E402


def __getattr__(name: str):
    """What belongs to the application above this library, which is imported when it is asked for."""
    if name == "ledger":
        from sparsegnn.experiments.ledger import Ledger

        return Ledger
    if name == "advise":
        from sparsegnn.advice.run import advise

        return advise
    raise AttributeError(f"module 'sparsegnn' has no attribute {name!r}")
