"""Dense, then sparse: layers that begin with all of their weights."""

from sparsegnn.controllers.pruning.ac_dc import ACDC as ACDC
from sparsegnn.controllers.pruning.admm import ADMM as ADMM
from sparsegnn.controllers.pruning.gradual_magnitude import GradualMagnitude as GradualMagnitude
from sparsegnn.controllers.pruning.narang import ThresholdRamp as ThresholdRamp
from sparsegnn.controllers.pruning.nm_decay import NMDecay as NMDecay
from sparsegnn.controllers.pruning.oneshot import OneShot as OneShot
from sparsegnn.controllers.pruning.penalty import Penalty as Penalty
from sparsegnn.controllers.pruning.probmask import ProbMask as ProbMask
from sparsegnn.controllers.pruning.scl import SCL as SCL
from sparsegnn.controllers.pruning.scores import Scored as Scored
from sparsegnn.controllers.pruning.shrinking import Shrinking as Shrinking
from sparsegnn.controllers.pruning.slr import SLR as SLR
from sparsegnn.controllers.pruning.straight_through import StraightThrough as StraightThrough
from sparsegnn.controllers.pruning.ugt import UGT as UGT
