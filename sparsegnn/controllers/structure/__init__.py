"""Graph, features, width: what sparsity there is besides the weights."""

from sparsegnn.controllers.structure.maxk import MaxKGNN as MaxKGNN
from sparsegnn.controllers.structure.oto import OTO as OTO
