"""Traffic forecasting: speeds of the next three quarters of an hour at every sensor, from those of the last hour."""

from sparsegnn.experiments.traffic.config import TrafficConfig as TrafficConfig
from sparsegnn.experiments.traffic.train import train as train
