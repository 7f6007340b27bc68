"""Graph, features, width: what sparsity there is besides the weights."""

from sparsegnn.controllers.structure.cgp import CGP as CGP
from sparsegnn.controllers.structure.edge_method import EdgeGates as EdgeGates
from sparsegnn.controllers.structure.edge_method import EdgeMethod as EdgeMethod
from sparsegnn.controllers.structure.fastgat import FastGAT as FastGAT
from sparsegnn.controllers.structure.gebt import GEBT as GEBT
from sparsegnn.controllers.structure.kedge import Kedge as Kedge
from sparsegnn.controllers.structure.maxk import MaxKGNN as MaxKGNN
from sparsegnn.controllers.structure.oto import OTO as OTO
from sparsegnn.controllers.structure.resistance import effective_resistance as effective_resistance
from sparsegnn.controllers.structure.triple import Triple as Triple
