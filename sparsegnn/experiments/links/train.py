"""One run of temporal link prediction, measured: a dense or a sparse network that ranks pairs of the future.

Embeddings of walks and the graph of the GCN are made of the training events alone, for the test too: what a model knows
is the same at every look. The epoch with the best AUC on the validation pairs is reported.
"""

from __future__ import annotations

import math
import time
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsegnn import data as sets
from sparsegnn.experiments import batches
from sparsegnn.experiments.config import check_device
from sparsegnn.experiments.links.config import LinkConfig
from sparsegnn.experiments.links.events import LinkSplit, Pairs, check_past, split
from sparsegnn.experiments.links.heuristics import levels
from sparsegnn.experiments.links.models import build
from sparsegnn.experiments.links.walks import walk_embeddings
from sparsegnn.experiments.loop import Account, Selection, make_controller
from sparsegnn.experiments.measure import PeakMemory
from sparsegnn.graph import CSRGraph

split_once = lru_cache(maxsize=4)(split)  # runs of one study have the same, and walk over it once


def message_graph(links: LinkSplit) -> CSRGraph:
    """The graph of the past: an edge in both directions between nodes that have an event, however many."""
    n, past = links.num_nodes, links.past
    key = np.unique(np.concatenate([past.source * n + past.target, past.target * n + past.source]))
    return CSRGraph.from_edge_index(torch.from_numpy(np.stack(np.divmod(key, n))), n)


class Task:
    """A model with all that it is called with: :meth:`logits` of pairs, of which it never sees more than the past."""

    def __init__(self, config: LinkConfig, data: sets.EventData, links: LinkSplit, device: torch.device):
        self.config, self.links, self.device = config, links, device
        self.embeddings = self.graph = None
        if config.model == "walk":
            how = (config.walks, config.length, config.features, config.passes)
            made = walk_embeddings(data, links, *how, config.split_seed)
            self.embeddings = torch.from_numpy(made).to(device)
        else:
            self.graph = message_graph(links)
            check_past("graph", self.graph.col.numpy(), self.graph.rows().numpy(), data, links)
            self.graph = self.graph.to(device)
        self.train, self.val, self.test = (self._inputs(pairs) for pairs in (links.train, links.val, links.test))

    def _inputs(self, pairs: Pairs) -> list[Tensor]:
        """What the model takes for these pairs, row by row, and last their labels."""
        source, target, label = (torch.from_numpy(a).to(self.device) for a in (pairs.source, pairs.target, pairs.label))
        if self.embeddings is None:
            return [source, target, label]
        return [torch.cat([self.embeddings[source], self.embeddings[target]], 1), label]

    def batches(self):
        for rows in torch.randperm(self.train[-1].numel()).to(self.device).split(self.config.batch):
            yield tuple(part.index_select(0, rows) for part in self.train)

    def logits(self, model: nn.Module, *inputs: Tensor) -> Tensor:
        return model(*inputs)[:, 0] if self.graph is None else model(self.graph, *inputs)


def scores(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Area under the ROC curve, and average precision, over positives and both kinds of negatives."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    y, p = labels.cpu().numpy(), logits.double().cpu().numpy()
    if not np.isfinite(p).all():
        return {"auc": math.nan, "ap": math.nan}
    return {"auc": float(roc_auc_score(y, p)), "ap": float(average_precision_score(y, p))}


def make_optimizer(config: LinkConfig, model: nn.Module) -> torch.optim.Optimizer:
    options = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), momentum=0.9, nesterov=True, **options)
    return torch.optim.Adam(model.parameters(), fused=True, **options)


def train(config: LinkConfig, data: sets.EventData | None = None) -> dict:
    """Train once and return what came out: AUC and average precision, weights, FLOPs, seconds, peak memory.

    `data` saves loading `config.data` again, and walking over it where it is the same object. Raises ValueError or
    TypeError for bad input, Leak where something would know the future, CheckFailed when the loss is not finite, a
    method that keeps the number of weights did not or never settled.
    """
    device = check_device(config.device)
    data = sets.load_events(config.data) if data is None else data
    start = time.perf_counter()
    links = split_once(data, config.split_seed)
    task = Task(config, data, links, device)
    preparation = time.perf_counter() - start
    config = config.in_batches(math.ceil(task.train[-1].numel() / config.batch))
    torch.manual_seed(config.seed)
    memory = PeakMemory(device)
    model = build(config, links.num_nodes).to(device)
    optimizer = make_optimizer(config, model)
    controller = make_controller(config, model, optimizer, task.graph, config.steps)
    account = Account(config, model, optimizer, controller, memory=memory)
    selection = Selection("auc", True)

    def loss(*batch: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(task.logits(model, *batch[:-1]), batch[-1])

    def evaluate() -> None:
        logits = task.logits(model, *task.val[:-1])
        tests = lambda: scores(task.logits(model, *task.test[:-1]), task.test[-1])  # noqa: E731
        off = F.binary_cross_entropy_with_logits(logits, task.val[-1]).item()
        selection.offer(account.steps, scores(logits, task.val[-1])["auc"], tests, model, tie=off)
        account.mark()

    batches.fit(config, data.name, model, optimizer, account, batches=task.batches, loss=loss, evaluate=evaluate,
                decay=config.lr_decay)  # fmt: skip
    return {
        **batches.result(config, "links", data, model, account, selection),
        "seconds_preparation": preparation,  # of the split, and the walks or the graph
        "nodes": links.num_nodes,
        "edges": task.graph.num_edges if task.graph is not None else None,
        "pairs": {name: getattr(links, name).positives for name in ("train", "val", "test")},
        "levels": levels(links),  # AUC of scores that nothing was trained for
        "notes": list(links.notes),
    }
