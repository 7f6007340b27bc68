"""Dense, then sparse: layers that begin with all of their weights."""

from sparsegnn.controllers.pruning.ac_dc import ACDC as ACDC
from sparsegnn.controllers.pruning.admm import ADMM as ADMM
from sparsegnn.controllers.pruning.gradual_magnitude import GradualMagnitude as GradualMagnitude
from sparsegnn.controllers.pruning.narang import ThresholdRamp as ThresholdRamp
from sparsegnn.controllers.pruning.oneshot import OneShot as OneShot
from sparsegnn.controllers.pruning.penalty import Penalty as Penalty
from sparsegnn.controllers.pruning.shrinking import Shrinking as Shrinking
from sparsegnn.controllers.pruning.slr import SLR as SLR
