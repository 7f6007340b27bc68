"""Sparse training: which weights exist, and how they move while the optimizer trains them."""

from sparsegnn.controllers.base import Controller as Controller
from sparsegnn.controllers.magnitude import GradualMagnitude as GradualMagnitude
from sparsegnn.controllers.optimizers import register_state as register_state
from sparsegnn.controllers.rigl import RigL as RigL
from sparsegnn.controllers.set import SET as SET
from sparsegnn.controllers.static import StaticSparse as StaticSparse
