"""Sparse from the first step: only the weights that exist are stored and multiplied."""

from sparsegnn.controllers.sparse.dst_ee import DSTEE as DSTEE
from sparsegnn.controllers.sparse.exploring import Exploring as Exploring
from sparsegnn.controllers.sparse.freeze import Freeze as Freeze
from sparsegnn.controllers.sparse.frozen_forward import FrozenForward as FrozenForward
from sparsegnn.controllers.sparse.gap import GaP as GaP
from sparsegnn.controllers.sparse.granet import GraNet as GraNet
from sparsegnn.controllers.sparse.itop import ITOP as ITOP
from sparsegnn.controllers.sparse.mest import MEST as MEST
from sparsegnn.controllers.sparse.rewiring import Rewiring as Rewiring
from sparsegnn.controllers.sparse.rgp import RGP as RGP
from sparsegnn.controllers.sparse.rigl import RigL as RigL
from sparsegnn.controllers.sparse.set import SET as SET
from sparsegnn.controllers.sparse.srigl import SRigL as SRigL
from sparsegnn.controllers.sparse.static import StaticSparse as StaticSparse
