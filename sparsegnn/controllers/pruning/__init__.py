"""Dense, then sparse: layers that begin with all of their weights."""

from sparsegnn.controllers.pruning.gradual_magnitude import GradualMagnitude as GradualMagnitude
from sparsegnn.controllers.pruning.shrinking import Shrinking as Shrinking
