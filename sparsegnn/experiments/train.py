"""One training run, measured: full-batch node classification with a dense or a sparse network.

Adam; the epoch with the best validation accuracy (ties: lower validation loss) is reported, and only epochs after
the last mask update take part. Nothing is ever selected on the test set.
"""

from __future__ import annotations

import io
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam

from sparsegnn import _console, _files
from sparsegnn import data as graphs
from sparsegnn.experiments.config import DTYPES, TrainConfig, check_device, check_writable, is_plain
from sparsegnn.experiments.loop import Account, CheckFailed, Selection, make_controller, used_settings
from sparsegnn.experiments.measure import PeakMemory, StepTimer
from sparsegnn.experiments.models import ROWWISE, build, edge_count, inputs_of, linears, prepare, rows


class NotSaved(OSError):
    """The run is done, but its checkpoint could not be written: `result` is what `train` would have returned."""

    def __init__(self, message: str, result: dict) -> None:
        super().__init__(message)
        self.result = result


def write_checkpoint(path: str | os.PathLike, content: dict) -> None:
    """torch.save, in one move: never a half-written file."""
    written = io.BytesIO()
    torch.save(content, written)
    _files.replace(path, written.getbuffer())


class _Split:
    """Nodes and labels of one mask, indexed once."""

    def __init__(self, data: graphs.GraphData, mask: Tensor):
        self.nodes = mask.nonzero().view(-1)
        self.labels = data.y[self.nodes]

    def loss(self, logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, self.labels)

    def accuracy(self, logits: Tensor) -> float:
        return (logits.argmax(1) == self.labels).double().mean().item()


class Task:
    """A model with all that it is called with: :meth:`logits` of the nodes of a split."""

    def __init__(self, config: TrainConfig, data: graphs.GraphData, model: nn.Module, graph: object):
        self.model, self.graph, self.device = model, graph, data.x.device.type
        self.low = DTYPES[config.dtype]
        self.train, self.val, self.test = (_Split(data, m) for m in (data.train_mask, data.val_mask, data.test_mask))
        self.inputs = [x if self.low is None else x.to(self.low) for x in inputs_of(config, data, graph)]
        self.rows: dict[_Split, Tensor | list[Tensor]] = {}
        if config.model in ROWWISE:  # a step computes nothing of other nodes
            splits = (self.train, self.val, self.test)
            of = {split: [rows(x, split.nodes) for x in self.inputs] for split in splits}
            self.rows = {split: parts if len(parts) > 1 else parts[0] for split, parts in of.items()}
            self.inputs = []

    def logits(self, *splits: _Split) -> list[Tensor]:
        with torch.autocast(self.device, self.low, enabled=self.low is not None, cache_enabled=False):
            if self.rows:
                found = [self.model(self.rows[split]) for split in splits]
            else:
                every = self.model(self.inputs[0], self.graph)
                found = [every[split.nodes] for split in splits]
        return [logits.float() for logits in found]

    def loss(self) -> Tensor:
        (logits,) = self.logits(self.train)
        return self.train.loss(logits)


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict]:
    """Adam's groups: weight decay on the first layer, for GAT everywhere."""
    first = list(model.first.parameters())
    known = set(map(id, first))
    rest = [p for p in model.parameters() if id(p) not in known]
    decay = config.weight_decay if config.model == "gat" else 0.0
    return [{"params": first, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": decay}]


def kernels(config: TrainConfig, model: nn.Module) -> dict[str, str]:
    """What multiplies and what aggregates in each layer: cpu/<instruction set>, cuda, reference, dense or pyg."""
    from sparsegnn.report import kernel

    convs = {f"convs.{i}": conv for i, conv in enumerate(getattr(model, "convs", ()))}
    if config.backend == "pyg":
        return dict.fromkeys(convs, "pyg")
    layers = convs | linears(model)
    return {name: kernel(layers[name]) for name in sorted(layers)}


def train(config: TrainConfig, data: graphs.GraphData | None = None) -> dict:
    """Train once and return what came out: accuracies, weights, FLOPs, seconds per step, peak memory.

    `data` saves loading `config.data` again. Raises ValueError or TypeError for bad input, CheckFailed when the loss
    is not finite, a method that keeps the number of weights did not or never settled, NotSaved when only the checkpoint
    is missing. A checkpoint holds the model as the method trains it, so that `build` makes one that loads it: nothing
    is finalized (`Controller.finalize`) here.
    """
    device = check_device(config.device)
    check_writable(config.save)
    data = (graphs.load(config.data, split_seed=config.split_seed) if data is None else data).to(device)
    torch.manual_seed(config.seed)
    memory = PeakMemory(device)
    graph = prepare(config.backend, data)
    model = build(config, data).to(device)
    start = time.perf_counter()
    task = Task(config, data, model, graph)
    preparation = time.perf_counter() - start
    gpu = device.type == "cuda"  # there the step count stays on the GPU, as a captured step needs it
    optimizer = Adam(parameter_groups(model, config), lr=config.lr, fused=True, capturable=gpu)
    edges = edge_count(graph)  # some methods remove edges before the first step
    controller = make_controller(config, model, optimizer, graph)
    # PyG's gather and scatter are not counted.
    account = Account(config, model, optimizer, controller, memory=memory, counted=config.backend == "sparsegnn",
                      recorded=config.cuda_graph)  # fmt: skip
    selection = Selection("accuracy", True, keep_state=config.save is not None)
    _fit(config, data.name, task, optimizer, account, selection)
    found = account.result(selection)
    result = {
        "task": "nodes",
        "data": data.name,
        "test_accuracy": found["test"],
        "val_accuracy": found["val"],
        "best_epoch": found["selected_step"] - 1,
        **found,
        "seconds_preparation": preparation,  # of the inputs: SIGN's powers, once
        "settings": {k: v if is_plain(v) else str(v) for k, v in used_settings(config).items()},
        "kernels": kernels(config, model),
        "patterns": {n: m.structure for n, m in linears(model).items() if hasattr(m, "structure")},
        "nodes": data.num_nodes,
        "edges": data.num_edges,
        "edges_at_start": edges,  # of the graph that the layers get
        "edges_at_end": edge_count(graph),
        "notes": list(data.notes),
        "config": {k: v for k, v in asdict(config).items() if k not in ("progress", "save")},
    }
    if config.save is not None:
        try:
            write_checkpoint(config.save, {"model": selection.state, "config": result["config"], "result": result})
        except Exception as e:
            raise NotSaved(f"save: {e}", result) from e
    return result


def _fit(config, name: str, task: Task, optimizer, account: Account, selection: Selection) -> None:
    """The training loop."""
    from tqdm import tqdm

    stderr = _console.diagnostics()
    hidden = not (stderr.isatty() if config.progress is None else config.progress)
    method = _console.clean(config.method)[:40]
    title = f"{_console.clean(name)[:40]} {config.model} {method if config.backend == 'sparsegnn' else config.backend}"
    make_step = _captured_step if config.cuda_graph else _plain_step
    step = make_step(task.loss, optimizer, account.timer)
    bar = tqdm(range(config.epochs), title, disable=hidden, delay=2, leave=False, file=stderr)
    for epoch in bar:
        task.model.train()
        with account.step(edge_count(task.graph)):
            loss = step()
        if not math.isfinite(loss.item()):
            raise CheckFailed(f"training diverged: loss {loss.item()} in epoch {epoch} (lr {config.lr})")
        last = epoch + 1 == config.epochs
        if account.may_select and (last or (epoch + 1) % config.eval_every == 0):
            _evaluate(task, selection, account)
            bar.set_postfix(val=f"{selection.val:.3f}", refresh=False)


def _plain_step(loss_of: Callable[[], Tensor], optimizer: torch.optim.Optimizer, timer: StepTimer):
    def step() -> Tensor:
        with timer.phase("forward"):
            loss = loss_of()
        with timer.phase("backward"):
            loss.backward()
        with timer.phase("optimizer"):
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()

    return step


def _captured_step(loss_of: Callable[[], Tensor], optimizer: torch.optim.Optimizer, timer: StepTimer):
    """The same as CUDA graphs, which have no phases. What is counted is never a replay: a new kind of step is run."""
    from sparsegnn.capture import CapturedStep

    def whole() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.step()
        return loss

    captured = CapturedStep(whole, optimizer)

    def step() -> Tensor:
        with timer.phase("step"):
            return captured()

    return step


@torch.no_grad()
def _evaluate(task: Task, selection: Selection, account: Account) -> None:
    """Offer the step that was just made: ties go to the lower validation loss."""
    task.model.eval()
    val, test = task.logits(task.val, task.test)
    loss = task.val.loss(val).item()
    tests = lambda: {selection.metric: task.test.accuracy(test)}  # noqa: E731
    selection.offer(account.steps, task.val.accuracy(val), tests, task.model, tie=loss)
    account.mark()
