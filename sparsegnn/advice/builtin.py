"""The models of ``sparsegnn train`` as a problem: all that is known here of how a run is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim import Adam

from sparsegnn import data as graphs
from sparsegnn.advice.work import OP, Problem
from sparsegnn.experiments.config import DENSE, TrainConfig, check_device
from sparsegnn.experiments.models import build, prepare
from sparsegnn.experiments.train import Task, parameter_groups


def problem_of(config: TrainConfig, data: graphs.GraphData | None = None) -> Problem:
    """The training step of a run; ``data`` saves loading it again."""
    if config.method != DENSE:
        raise ValueError(f"{OP}: method must be {DENSE!r}, since levers are what is looked for, got {config.method!r}")
    device = check_device(config.device)
    data = (graphs.load(config.data, split_seed=config.split_seed) if data is None else data).to(device)
    graph = prepare(config.backend, data)

    def made(width: float = 1.0, maxk: int | None = config.maxk) -> nn.Module:
        hidden = max(1, round(width * config.hidden))
        k = maxk if maxk is None else min(maxk, hidden * heads)
        with torch.random.fork_rng([]):
            torch.manual_seed(config.seed)
            return build(replace(config, hidden=hidden, maxk=k), data).to(device)

    def loss_in(dtype: str) -> Callable[[nn.Module], Tensor]:
        steps: list[Task] = []

        def loss(model: nn.Module) -> Tensor:
            if not steps:
                steps.append(Task(replace(config, dtype=dtype), data, model, graph))
            steps[0].model = model
            return steps[0].loss()

        return loss

    def optimizer(model: nn.Module) -> Adam:
        return Adam(parameter_groups(model, config), lr=config.lr, fused=True)

    def with_maxk(width: float, k: int) -> nn.Module:
        if config.maxk is not None:
            raise ValueError(f"the step has MaxK {config.maxk} as it is")
        return made(width, k)

    heads = config.heads if config.model == "gat" else 1
    low = loss_in("bfloat16") if config.dtype == "float32" else _runs_so(config.dtype)
    return Problem(made(), loss_in(config.dtype), optimizer, made, with_maxk, low, config.hidden * heads)


def _runs_so(dtype: str) -> Callable[[nn.Module], Tensor]:
    def loss(model: nn.Module) -> Tensor:
        raise ValueError(f"the step runs in {dtype} as it is")

    return loss
