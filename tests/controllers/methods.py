"""Any method of the registry on a small GCN, and who is excused from which promise: for ``test_methods.py``."""

from __future__ import annotations

import copy
import functools
import io
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sparsegnn import CSRGraph, sparsify
from sparsegnn.controllers import METHODS, registry
from sparsegnn.nn import GCNConv, SparseLinear
from sparsegnn.pattern import PATTERNS

SPARSITY = 0.75
NODES, WIDTHS = 62, (12, 20, 4)  # no tensor of a step has 240 or 80 elements but a weight with its zeros
WEIGHTS = {m * k for k, m in zip(WIDTHS, WIDTHS[1:], strict=False)}

ADAM = partial(torch.optim.Adam, lr=0.02)

#: method -> settings where its recipe does not do at these sizes
SETTINGS: dict[str, dict] = {"rgp": {"nodes": 4}, "maxk": {"k": 6}}

#: promise -> method -> why it cannot hold by its nature; the only place where a method is excused
EXCUSED: dict[str, dict[str, str]] = {
    "sparsity": {
        "fastgat": "removes edges, no weights",
        "kedge": "removes edges, no weights",
        "maxk": "removes activations, no weights",
        "oto": "removes units, as many as the loss lets it",
        "narang": "removes what is below a threshold that rises: how much that is follows",
        "scl": "removes what a penalty takes below zero: how much that is follows",
        "nm-decay": "keeps N of every M weights, whatever the sparsity",
    },
    "parts": {
        **dict.fromkeys(("cgp", "fastgat", "gebt", "kedge", "triple"), "a graph has one controller: see its refusal"),
        "oto": "the units of a layer are inputs of the next one: it needs the whole model",
        "maxk": "replaces what is between layers: it needs the whole model",
    },
}


def methods(promise: str) -> list:
    """The methods of the registry as pytest parameters; skipped with the reason where one is excused."""
    excused = EXCUSED.get(promise, {})
    marks = {name: [pytest.mark.skip(reason=excused[name])] if name in excused else [] for name in METHODS}
    return [pytest.param(name, marks=marks[name]) for name in sorted(METHODS)]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(GCNConv(k, m) for k, m in zip(WIDTHS, WIDTHS[1:], strict=False))
        self.activation = nn.ReLU()

    def forward(self, x: Tensor, graph: CSRGraph) -> Tensor:
        return self.convs[1](self.activation(self.convs[0](x, graph)), graph)


@dataclass
class Run:
    """What trains: a loop that knows nothing of sparsity."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    controller: Any
    graph: CSRGraph
    x: Tensor
    y: Tensor
    call: nn.Module | None = None  # what is around the model

    def loss(self, nodes: slice = slice(None)) -> Tensor:
        """Of some nodes; all of them have a part of ``len / NODES`` in that of the graph."""
        logits = (self.model if self.call is None else self.call)(self.x, self.graph)
        return F.cross_entropy(logits[nodes], self.y[nodes])

    def train(self, steps: int) -> Run:
        for _ in range(steps):
            self.loss().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return self

    @torch.no_grad()
    def output(self, model: nn.Module | None = None) -> Tensor:
        """In eval mode."""
        model = self.model if model is None else model
        was = model.training
        y = model.eval()(self.x, self.graph)
        model.train(was)
        return y

    def layers(self) -> dict[str, SparseLinear]:
        return {name: m for name, m in self.model.named_modules() if isinstance(m, SparseLinear)}

    def counts(self) -> dict[str, int]:
        return {name: m.values.numel() for name, m in self.layers().items()}

    def state(self) -> tuple:
        """All that a checkpoint holds."""
        return self.model.state_dict(), self.optimizer.state_dict(), self.controller.state_dict()

    def copy(self) -> Run:
        return copy.deepcopy(self)


def a_graph() -> CSRGraph:
    """Random and symmetric, without self-loops."""
    g = torch.Generator().manual_seed(3)
    pairs = torch.triu(torch.rand(NODES, NODES, generator=g) < 0.08, 1)
    graph = CSRGraph.from_edge_index((pairs | pairs.t()).nonzero().t(), NODES)
    assert graph.num_edges not in WEIGHTS and graph.num_edges + NODES not in WEIGHTS
    return graph


def make(name: str, steps: int = 40, optimizer=ADAM, seed: int = 0,
         dtype: torch.dtype = torch.float64, watch=None, around=None, attach: bool = True,
         own: dict | None = None) -> Run:  # fmt: skip
    """``watch`` is called after each step of the optimizer, before the method acts; ``around`` wraps the model."""
    cls = METHODS[name]
    torch.manual_seed(seed)
    model, graph = Net().to(dtype), a_graph()
    if cls.start != "plain":
        where = {"pattern": cls.patterns} if cls.patterns in PATTERNS else {}
        default = registry.settings(cls).get("distribution")
        spread = default.default if default is not None and cls.start == "sparse" else None
        sparsify(model, cls.start_sparsity(SPARSITY), distribution=spread or "erk", **where)
    call = None if around is None else around(model)
    made = optimizer(model.parameters())
    if watch is not None:
        made.register_step_post_hook(watch)
    settings = {"common": {"sparsity": SPARSITY}, "own": SETTINGS.get(name, {}) | (own or {}), "graph": graph}
    controller = registry.make(cls, model, made, steps=steps, **settings) if attach else None
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(NODES, WIDTHS[0], generator=g).to(dtype), torch.randint(WIDTHS[-1], (NODES,), generator=g)
    return Run(model, made, controller, graph, x, y, call)


@functools.cache
def plain(name: str, steps: int) -> tuple:
    """The state after so many steps of a loop without anything around it; made once."""
    return make(name, steps).train(steps).state()


def saved(state):
    """Through a file, as a checkpoint goes."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def differences(a, b, at: str = "", **tolerance) -> list[str]:
    """Where two states are not the same; bit for bit without a tolerance."""
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [f"{at}: {sorted(map(str, a.keys() ^ b.keys()))}"]
        return [d for key in a for d in differences(a[key], b[key], f"{at}.{key}", **tolerance)]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [d for i in range(len(a)) for d in differences(a[i], b[i], f"{at}.{i}", **tolerance)]
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return [f"{at}: {list(a.shape)} {a.dtype}, {list(b.shape)} {b.dtype}"]
        loose = tolerance and a.dtype.is_floating_point
        same = torch.allclose(a, b, equal_nan=True, **tolerance) if loose else torch.equal(a, b)
        return [] if same else [f"{at}: {(a != b).sum()} of {a.numel()} numbers"]
    return [] if a == b else [f"{at}: {a!r}, {b!r}"]


def at_places(layer: SparseLinear, slot: Tensor) -> dict[int, float]:
    """What is held for each weight, by its position."""
    crow, col = layer.pattern()
    rows = torch.repeat_interleave(torch.arange(layer.out_features), crow.diff().long())
    return dict(zip((rows * layer.in_features + col).tolist(), slot.tolist(), strict=True))


class Watch(TorchDispatchMode):
    """The operators that make a tensor of as many elements as a weight has with its zeros."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []
        self.sizes: set[int] = set()
        self.paused = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor) and t.numel() in self.sizes]
        if made and not self.paused:
            known = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
            if any(t.untyped_storage().data_ptr() not in known for t in made):
                self.found.append(str(func))
        return out


@dataclass
class Trace:
    """What a run of 40 steps looked like."""

    run: Run
    start: dict[str, int]
    counts: list[dict[str, int]]  # after each step
    places: list[dict[str, tuple[int, ...]]]  # addresses of values and col, after each step
    due: list[bool]
    phases: list[str]  # before each step, and at the end
    made: list[list[str]]  # what each step allocated of the size of a weight that lacks some, without its update

    def acts(self, step: int) -> bool:
        """Whether the method may change counts after this step, the first of which is 0."""
        return self.due[step] or self.phases[step] != self.phases[step + 1]


@functools.cache
def trace(name: str) -> Trace:
    """Of the method with its recipe; made once."""
    watch = Watch()

    def stepped(optimizer, args, kwargs):
        due.append(controller.due(controller.step + 1))
        # an update may score all positions, and the step before one makes the tensor that collects the dense gradient
        watch.paused = due[-1] or controller.due(controller.step + 2)

    run = make(name, watch=stepped)
    controller, due = run.controller, []
    found = Trace(run, run.counts(), [], [], due, [], [])
    for _ in range(40):
        found.phases.append(controller.phase)
        watch.found, watch.paused = [], False
        layers = run.layers().values()  # those that lack weights: a layer that has all of them runs dense kernels
        watch.sizes = {m.in_features * m.out_features for m in layers} - {m.values.numel() for m in layers}
        with watch:
            run.train(1)
        found.made.append(watch.found)
        found.counts.append(run.counts())
        found.places.append({n: (m.values.data_ptr(), m.col.data_ptr()) for n, m in run.layers().items()})
    found.phases.append(controller.phase)
    return found
