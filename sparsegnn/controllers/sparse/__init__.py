"""Sparse from the first step: only the weights that exist are stored and multiplied."""

from sparsegnn.controllers.sparse.gap import GaP as GaP
from sparsegnn.controllers.sparse.rewiring import Rewiring as Rewiring
from sparsegnn.controllers.sparse.rigl import RigL as RigL
from sparsegnn.controllers.sparse.set import SET as SET
from sparsegnn.controllers.sparse.static import StaticSparse as StaticSparse
