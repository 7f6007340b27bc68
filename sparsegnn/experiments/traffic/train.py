"""One run of traffic forecasting, measured: a dense or a sparse spatio-temporal network.

Adam on the mean absolute error of what is not missing. The epoch with the least mean absolute error over the horizons
on the validation windows is reported.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from sparsegnn import data as sets
from sparsegnn.experiments import batches
from sparsegnn.experiments.config import check_device
from sparsegnn.experiments.loop import Account, Selection, make_controller
from sparsegnn.experiments.measure import PeakMemory
from sparsegnn.experiments.traffic.config import TrafficConfig
from sparsegnn.experiments.traffic.data import MISSING, Windows, errors, persistence
from sparsegnn.experiments.traffic.models import Copies, build
from sparsegnn.graph import CSRGraph


def masked_mae(forecast: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute error over what is not missing, both in the units of the measurement; 0 where all is missing."""
    there = truth != MISSING
    off = (forecast - truth).abs()
    return off.where(there, torch.zeros_like(off)).sum() / there.sum().clamp(min=1)


def train(config: TrafficConfig, data: sets.SignalData | None = None) -> dict:
    """Train once and return what came out: MAE, RMSE and MAPE at each horizon, weights, FLOPs, seconds, peak memory.

    `data` saves loading `config.data` again. Raises ValueError or TypeError for bad input, CheckFailed when the loss is
    not finite, a method that keeps the number of weights did not or never settled.
    """
    device = check_device(config.device)
    data = (sets.load_signal(config.data) if data is None else data).to(device)
    start = time.perf_counter()
    windows = Windows(data, config.history, tuple(config.horizons))
    copies = Copies(CSRGraph.from_edge_index(data.edge_index, data.num_nodes, data.edge_weight))
    preparation = time.perf_counter() - start
    size = min(config.batch, windows.starts["train"].numel())  # of all batches: a graph has one size only
    config = config.in_batches(windows.starts["train"].numel() // size)
    torch.manual_seed(config.seed)
    memory = PeakMemory(device)
    model = build(config).to(device)
    options = {"lr": config.lr, "weight_decay": config.weight_decay}
    optimizer = torch.optim.Adam(model.parameters(), fused=True, **options)
    controller = make_controller(config, model, optimizer, None, config.steps)
    account = Account(config, model, optimizer, controller, memory=memory)
    selection = Selection("mae", False)

    def shuffled():
        starts = windows.starts["train"]
        for chosen in torch.randperm(starts.numel()).to(device)[: config.batches * size].split(size):
            yield windows.inputs(starts[chosen]), windows.targets(starts[chosen])

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return masked_mae(windows.measured(model(x, copies)), y) / windows.std

    def look(part: str) -> dict[str, float]:
        starts, found = windows.starts[part], []
        for chosen in starts.split(size):
            full = torch.cat([chosen, chosen[-1:].expand(size - chosen.numel())])
            found.append(windows.measured(model(windows.inputs(full), copies))[: chosen.numel()])
        return errors(torch.cat(found), windows.targets(starts), windows.horizons)

    def evaluate() -> None:
        selection.offer(account.steps, look("val")["mae"], lambda: look("test"), model)
        account.mark()

    batches.fit(config, data.name, model, optimizer, account, batches=shuffled, loss=loss, evaluate=evaluate)
    return {
        **batches.result(config, "traffic", data, model, account, selection),
        "seconds_preparation": preparation,  # of the windows and the graph
        "nodes": data.num_nodes,
        "edges": data.num_edges,
        "windows": {part: starts.numel() for part, starts in windows.starts.items()},
        "levels": {"persistence": persistence(windows)["mae"]},  # MAE of what nothing was trained for
    }
