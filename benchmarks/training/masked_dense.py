"""By the name that the commands of published results have."""

from sparsegnn.experiments.masked_dense import MaskedDense as MaskedDense
from sparsegnn.experiments.masked_dense import MaskedLinear as MaskedLinear
