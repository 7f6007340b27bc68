"""Sparse graph neural networks that are fast, not just masked."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from sparsegnn import _native
from sparsegnn._malloc import keep_memory as keep_memory
from sparsegnn._native import empty_cache as empty_cache
from sparsegnn._version import __version__ as __version__

_native.load()

from sparsegnn import nn as nn  # noqa: E402  (the libraries come first)
from sparsegnn import ops as ops  # noqa: E402
from sparsegnn.graph import CSRGraph as CSRGraph  # noqa: E402
from sparsegnn.policy import use_kernel as use_kernel  # noqa: E402
from sparsegnn.pyg import accelerate as accelerate  # noqa: E402

if TYPE_CHECKING:
    from sparsegnn.advice.run import advise as advise
    from sparsegnn.capture import CapturedStep as CapturedStep
    from sparsegnn.compaction import compact as compact
    from sparsegnn.compaction import dead_units as dead_units
    from sparsegnn.controllers import SET as SET
    from sparsegnn.controllers import Controller as Controller
    from sparsegnn.controllers import GradualMagnitude as GradualMagnitude
    from sparsegnn.controllers import Rewiring as Rewiring
    from sparsegnn.controllers import RigL as RigL
    from sparsegnn.controllers import StaticSparse as StaticSparse
    from sparsegnn.convert import densify as densify
    from sparsegnn.convert import sparsify as sparsify
    from sparsegnn.report import flops as flops
    from sparsegnn.report import info as info
    from sparsegnn.report import summary as summary

#: what is imported when it is asked for, so that ``import sparsegnn`` takes no longer than its layers do
_LATER = {
    "sparsegnn.capture": ("CapturedStep",),
    "sparsegnn.compaction": ("compact", "dead_units"),
    "sparsegnn.controllers": ("SET", "Controller", "GradualMagnitude", "Rewiring", "RigL", "StaticSparse"),
    "sparsegnn.convert": ("densify", "sparsify"),
    "sparsegnn.report": ("flops", "info", "summary"),
    "sparsegnn.advice.run": ("advise",),
}
_PLACES = {name: module for module, names in _LATER.items() for name in names}
_MODULES = ("capture", "controllers", "convert", "linears", "plans", "report", "width")
__all__ = ["CSRGraph", "accelerate", "empty_cache", "keep_memory", "nn", "ops", "use_kernel", *_PLACES]  # noqa: PLE0604


def __getattr__(name: str):
    if name in _MODULES:
        return importlib.import_module(f"sparsegnn.{name}")
    if name == "ledger":
        from sparsegnn.experiments.ledger import Ledger as found
    elif name in _PLACES:
        found = getattr(importlib.import_module(_PLACES[name]), name)
    else:
        raise AttributeError(f"module 'sparsegnn' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES, *_MODULES, "ledger"})
