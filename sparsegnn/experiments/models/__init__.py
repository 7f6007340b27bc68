"""The networks of the training run: GCN, GAT, GraphSAGE, GIN, SIGN and MLP, with the levers that compose."""

from sparsegnn.experiments.models.build import BACKENDS as BACKENDS
from sparsegnn.experiments.models.build import MODELS as MODELS
from sparsegnn.experiments.models.build import ROWWISE as ROWWISE
from sparsegnn.experiments.models.build import Maker as Maker
from sparsegnn.experiments.models.build import build as build
from sparsegnn.experiments.models.build import edge_count as edge_count
from sparsegnn.experiments.models.build import inputs_of as inputs_of
from sparsegnn.experiments.models.build import prepare as prepare
from sparsegnn.experiments.models.features import FeatureDropout as FeatureDropout
from sparsegnn.experiments.models.features import rows as rows
from sparsegnn.experiments.models.shapes import linears as linears
from sparsegnn.experiments.models.shapes import sparsities as sparsities
from sparsegnn.experiments.models.shapes import weight_counts as weight_counts
from sparsegnn.experiments.models.shapes import weight_shapes as weight_shapes
