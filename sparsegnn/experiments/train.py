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
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam

from sparsegnn import _console, _files
from sparsegnn import data as graphs
from sparsegnn._version import __version__
from sparsegnn.controllers import Controller, registry
from sparsegnn.experiments.config import DENSE, DTYPES, TrainConfig, check_device, check_writable, is_plain
from sparsegnn.experiments.ledger import Ledger
from sparsegnn.experiments.measure import PeakMemory, StepTimer
from sparsegnn.experiments.meter import PARTS
from sparsegnn.experiments.models import ROWWISE, build, edge_count, inputs_of, linears, prepare, rows, weight_counts


class CheckFailed(RuntimeError):
    """A run that went wrong although its input was fine: diverged, or the number of weights changed."""


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


@dataclass
class _Best:
    """The selected epoch."""

    epoch: int = -1
    val_accuracy: float = -1.0
    val_loss: float = math.inf
    test_accuracy: float = float("nan")
    curve: list[list] = field(default_factory=list)
    state: dict[str, Tensor] | None = None


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


def make_controller(
    config: TrainConfig, model: nn.Module, optimizer: torch.optim.Optimizer, graph: object = None
) -> Controller | None:
    """The method, attached to the optimizer; None for a dense run. ValueError where it does not fit into the run."""
    cls = config.controller
    if cls is None:
        return None
    options = {"steps": config.epochs, "common": config.common(), "own": config.set}
    made = registry.make(cls, model, optimizer, graph=graph, **options)
    if made.settled_at > config.epochs:
        made.detach()
        raise ValueError(
            f"epochs must be at least {made.settled_at} for method {config.method!r}, whose sparsity is final only "
            f"then, got {config.epochs}: train longer, or let it end sooner"
        )
    return made


def used_settings(config: TrainConfig) -> dict:
    """Every setting of the method, as the run has it."""
    cls = config.controller
    if cls is None:
        return {}
    defaults = {name: p.default for name, p in registry.settings(cls).items()}
    return defaults | registry.chosen(cls, config.epochs, config.common(), config.set)


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
    weights_at_start, dense = weight_counts(model)
    timer = StepTimer(device)
    # A recorded step shows no operators; PyG's gather and scatter are not counted.
    ledger = Ledger(model, optimizer, sample_every=0 if config.cuda_graph else 50, memory=memory)
    phases = _Phases(controller)
    best = _fit(config, data.name, task, optimizer, phases, timer, ledger)
    account = ledger.report(show=False)
    counted = account["flops"] if config.backend == "sparsegnn" else dict.fromkeys(account["flops"])
    kept, _ = weight_counts(model)
    if (controller is None or controller.keeps_size) and kept != weights_at_start:
        raise CheckFailed(f"{config.method}: the number of weights must not change, {weights_at_start} became {kept}")
    if best.epoch < 0:
        raise CheckFailed(f"{config.method}: sparsity must be final by the last epoch, got step {phases.settled_at} of "
                          f"{config.epochs}")  # fmt: skip
    seconds = timer.medians()
    result = {
        "data": data.name,
        "test_accuracy": best.test_accuracy,
        "val_accuracy": best.val_accuracy,
        "best_epoch": best.epoch,
        # steps made, validation accuracy then, test accuracy of the epoch that is selected by then
        "curve": best.curve,
        "sparsity": 1 - kept / dense,
        "weights": kept,
        "weights_dense": dense,
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops": counted["products"],
        **{f"flops_{part}": counted[part] for part in PARTS},
        "seconds_per_step": seconds["step"],
        "seconds_forward": seconds["forward"],
        "seconds_backward": seconds["backward"],
        "seconds_optimizer": seconds["optimizer"],
        **{f"seconds_{part}": account["seconds_per_step"][part] for part in (*PARTS, "other")},
        "seconds_preparation": preparation,  # of the inputs: SIGN's powers, once
        "seconds_training": account["seconds"]["total"],  # of all steps, without looks at the validation set
        "peak_memory_bytes": account["peak_memory_bytes"],
        "run_memory_bytes": account["run_memory_bytes"],  # above what the process held before the model was made
        "mask_updates": getattr(controller, "updates", 0),
        "phases": phases.history,
        "settings": {k: v if is_plain(v) else str(v) for k, v in used_settings(config).items()},
        "kernels": kernels(config, model),
        "patterns": {n: m.structure for n, m in linears(model).items() if hasattr(m, "structure")},
        "nodes": data.num_nodes,
        "edges": data.num_edges,
        "edges_at_start": edges,  # of the graph that the layers get
        "edges_at_end": edge_count(graph),
        "notes": list(data.notes),
        "threads": torch.get_num_threads(),
        "versions": {"sparsegnn": __version__, "torch": str(torch.__version__)},
        "config": {k: v for k, v in asdict(config).items() if k not in ("progress", "save")},
    }
    if config.save is not None:
        try:
            write_checkpoint(config.save, {"model": best.state, "config": result["config"], "result": result})
        except Exception as e:
            raise NotSaved(f"save: {e}", result) from e
    return result


class _Phases:
    """What a method's layers do from which step on, and when that ends."""

    def __init__(self, controller: Controller | None):
        self.controller = controller
        self.history: list[list] = []  # [phase, first step]

    @property
    def settled_at(self) -> int:
        return 0 if self.controller is None else self.controller.settled_at

    def at(self, step: int) -> str:
        """The phase of a step that is about to be made."""
        now = DENSE if self.controller is None else self.controller.phase
        if not self.history or self.history[-1][0] != now:
            self.history.append([now, step])
        return now


def _fit(config, name: str, task: Task, optimizer, phases: _Phases, timer: StepTimer, ledger: Ledger) -> _Best:
    """The training loop."""
    from tqdm import tqdm

    model = task.model
    best = _Best()
    stderr = _console.diagnostics()
    hidden = not (stderr.isatty() if config.progress is None else config.progress)
    method = _console.clean(config.method)[:40]
    title = f"{_console.clean(name)[:40]} {config.model} {method if config.backend == 'sparsegnn' else config.backend}"
    make_step = _captured_step if config.cuda_graph else _plain_step
    step = make_step(task.loss, optimizer, timer)
    bar = tqdm(range(config.epochs), title, disable=hidden, delay=2, leave=False, file=stderr)
    for epoch in bar:
        model.train()
        now = phases.at(epoch)
        # A step of a kind that was not seen must be none that is replayed.
        with ledger.step(None if config.cuda_graph else (now, edge_count(task.graph))) as sampled:
            loss = step()
        timer.end_step(keep=not sampled)
        if not math.isfinite(loss.item()):
            raise CheckFailed(f"training diverged: loss {loss.item()} in epoch {epoch} (lr {config.lr})")
        last = epoch + 1 == config.epochs
        if epoch + 1 >= phases.settled_at and (last or (epoch + 1) % config.eval_every == 0):
            _evaluate(epoch, task, best, config.save is not None)
            bar.set_postfix(val=f"{best.val_accuracy:.3f}", refresh=False)
    return best


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
def _evaluate(epoch: int, task: Task, best: _Best, keep_state: bool) -> None:
    """Take this epoch as the best so far if its validation accuracy says so."""
    task.model.eval()
    val, test = task.logits(task.val, task.test)
    accuracy, loss = task.val.accuracy(val), task.val.loss(val).item()
    if not math.isfinite(loss):
        raise CheckFailed(f"training diverged: validation loss {loss} in epoch {epoch}")
    if (accuracy, -loss) > (best.val_accuracy, -best.val_loss):
        best.epoch, best.val_accuracy, best.val_loss = epoch, accuracy, loss
        best.test_accuracy = task.test.accuracy(test)
        if keep_state:
            best.state = {k: v.detach().cpu().clone() for k, v in task.model.state_dict().items()}
    best.curve.append([epoch + 1, accuracy, best.test_accuracy])
