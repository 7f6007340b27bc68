"""Methods that make a model sparse while it trains: ``sparse`` from the first step, ``pruning`` dense weights, or the
``structure`` around them (edges, features, neurons). Each is a class in a file of its own, on the frame of ``base.py``.
"""

from sparsegnn.controllers.base import Controller as Controller
from sparsegnn.controllers.optimizers import register_state as register_state
from sparsegnn.controllers.pruning import *  # noqa: F403
from sparsegnn.controllers.registry import METHODS as METHODS
from sparsegnn.controllers.registry import register as register
from sparsegnn.controllers.sparse import *  # noqa: F403
from sparsegnn.controllers.structure import *  # noqa: F403
