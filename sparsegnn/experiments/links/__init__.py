"""Temporal link prediction: who will have to do with whom, from the events before."""

from sparsegnn.experiments.links.config import LinkConfig as LinkConfig
from sparsegnn.experiments.links.events import Leak as Leak
from sparsegnn.experiments.links.events import LinkSplit as LinkSplit
from sparsegnn.experiments.links.events import split as split
from sparsegnn.experiments.links.train import train as train
