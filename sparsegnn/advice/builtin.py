"""The models of ``sparsegnn train`` as a problem: all that is known here of how a run is made."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam

from sparsegnn import data as graphs
from sparsegnn.advice.work import OP, Problem
from sparsegnn.experiments.config import DENSE, TrainConfig, check_device
from sparsegnn.experiments.models import build, features_of, prepare
from sparsegnn.experiments.train import parameter_groups


def problem_of(config: TrainConfig, data: graphs.GraphData | None = None) -> Problem:
    """The training step of a run; ``data`` saves loading it again."""
    if config.method != DENSE:
        raise ValueError(f"{OP}: method must be {DENSE!r}, since levers are what is looked for, got {config.method!r}")
    device = check_device(config.device)
    data = (graphs.load(config.data, split_seed=config.split_seed) if data is None else data).to(device)
    x, graph = features_of(config.backend, data), prepare(config.backend, data)
    nodes = data.train_mask.nonzero().view(-1)
    labels = data.y[nodes]

    def made(width: float = 1.0) -> nn.Module:
        hidden = max(1, round(width * config.hidden))
        with torch.random.fork_rng([]):
            torch.manual_seed(config.seed)
            return build(dataclasses.replace(config, hidden=hidden), data).to(device)

    def loss(model: nn.Module) -> Tensor:
        return F.cross_entropy(model(x, graph)[nodes], labels)

    def optimizer(model: nn.Module) -> Adam:
        gpu = device.type == "cuda"
        return Adam(parameter_groups(model, config), lr=config.lr, fused=gpu or None)

    return Problem(made(), loss, optimizer, made, config.hidden)
