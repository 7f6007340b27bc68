"""Methods that sparsify the graph that a model is called with, and those that train a value for each of its edges."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sparsegnn.controllers.attachment import Accumulation
from sparsegnn.controllers.base import Controller
from sparsegnn.controllers.processes import is_alone
from sparsegnn.controllers.settings import check_names, check_number
from sparsegnn.controllers.structure.edges import Edges, check_graph, own
from sparsegnn.controllers.structure.gates import Gates, loss_scale
from sparsegnn.graph import CSRGraph
from sparsegnn.nn.attention import AttentionConv
from sparsegnn.nn.copies import checksum
from sparsegnn.nn.gin import GINConv
from sparsegnn.nn.sage import SAGEConv

#: layers that see only which edges there are
BLIND = (AttentionConv, SAGEConv, GINConv)


class EdgeMethod(Controller):
    """Base of methods that remove edges of ``graph``, the CSRGraph that the model is called with, in place.

    Both directions of an undirected edge stay or go together, self-loops stay. Degrees are those of the edges that are
    left: layers make their norm anew from them, caches too (``GCNConv(cached=True)``). Copies of the graph, such as
    ``graph.weighted(...)`` and ``graph.to(...)``, keep all edges, so the model must be called with the graph itself.
    ``edge_sparsity`` counts undirected edges, or directed ones of a graph that is not symmetric.
    """

    family = "structure"
    target = "edges"
    start = "plain"
    moves_weights = False
    keeps_size = False

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, graph: CSRGraph | None = None, **settings
    ):
        self.graph = check_graph(self._name, graph)
        super().__init__(model, optimizer, **settings)

    def begin(self) -> None:
        self.edges = Edges(self._name, self.graph, self.generator("ties", step=0))
        own(self.graph, self)
        super().begin()

    def _find_layers(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
        if self.start != "plain":
            return super()._find_layers(model, optimizer)
        if not any(p.requires_grad for group in optimizer.param_groups for p in group["params"]):
            raise ValueError(f"{self._name}: optimizer must have parameters that are trained, got none")
        return {}

    def extra_state(self) -> dict:
        return {**super().extra_state(), "edges": {"alive": self.edges.alive.clone()}}

    def read_state(self, state: Mapping) -> Callable[[], None]:
        alive = self.edges.check_alive(check_names(self._name, "edges", state, ["alive"]))
        rest = super().read_state(state)

        def apply() -> None:
            self.edges.shuffle(self.generator("ties", step=0))  # of the seed of the checkpoint
            self.edges.restore(alive)
            rest()

        return apply


class EdgeGates(EdgeMethod):
    """Base of methods that train a value for each edge: they define :meth:`gates` of ``self.gate.theta``.

    ``graph.val`` is a leaf tensor that requires a gradient and holds the weights of the graph times the gates. After
    the backward pass its gradient is summed over both directions and chained to the parameters of the gates, which an
    Adam of their own moves with the optimizer's step; then ``val`` gets the new values. No autograd graph outlives a
    step, and the optimizer knows nothing of gates: no weight decay, no clipping. With ``torch.distributed`` initialised
    their gradients are averaged over the ranks, which must have the same graph.

    Layers that do not use edge values (GAT, SAGE, GIN) are refused.
    """

    every_step = True
    edge_lr: float

    def begin(self) -> None:
        self._open, self._pending, self._warned, self._watch = True, None, False, None
        if blind := [n for n, m in self.model.named_modules() if isinstance(m, BLIND)]:
            raise ValueError(f"{self._name}: model must have layers that use the values of edges (GCNConv), got "
                             f"{blind}, which see only which edges there are: use FastGAT")  # fmt: skip
        check_number(self._name, "edge_lr", self.edge_lr, 0, 1e30)
        super().begin()
        dtype = next(p for group in self.optimizer.param_groups for p in group["params"]).dtype
        dtype = torch.promote_types(dtype, torch.float32)
        weights = self.edges.weights(dtype)
        self.gate = Gates(self.first_theta(weights), self.edge_lr)
        self.show()

    # --- to override ---

    def first_theta(self, weights: Tensor) -> Tensor:
        """[P, units] what the gates begin with; ``weights`` [units] says type and device."""
        raise NotImplementedError(f"{self._name} must define first_theta()")

    def gates(self, theta: Tensor) -> Tensor:
        """[units] the values of the gates; differentiable."""
        raise NotImplementedError(f"{self._name} must define gates()")

    def penalty(self, theta: Tensor) -> Tensor | float:
        """What the gates pay besides the loss; differentiable."""
        return 0.0

    # --- for methods ---

    @torch.no_grad()
    def show(self) -> None:
        """Write the gates into the weights of the graph."""
        graph = self.graph
        effective = self.edges.spread(self.gates(self.gate.theta))
        if graph.val is None or not graph.val.requires_grad or graph.val.shape != effective.shape:
            graph.val = torch.empty_like(effective).requires_grad_()
            if graph.num_rows == graph.num_cols:  # a compiled region cannot make it
                graph.looped()[0].transpose()
            self._rewatch()
        graph.write_(effective)

    @torch.no_grad()
    def keep_edges(self, index: Tensor) -> None:
        """Keep these units alone, ascending positions in ``edges.alive``, and their gates."""
        if index.numel() < len(self.edges):
            self.edges.keep(index)
            self.gate.keep(index)
        self.show()

    def close(self) -> None:
        """End the gates: from now on the edges that are left have the weights that they had before the method."""
        self._open, self._pending = False, None
        self._unwatch()
        self.edges.restore(self.edges.alive)

    def learn(self) -> None:
        """Move the gates by the gradient of this step, once."""
        gradient, self._pending = self._pending, None
        if gradient is not None and self._open:
            self.gate.learn(lambda theta: (self.gates(theta) * gradient).sum() + self.penalty(theta))

    # --- of the frame ---

    def before_step(self) -> None:
        super().before_step()
        self._pending = self._collect() if self._open else None

    def after_step(self) -> None:
        super().after_step()
        if self._open:
            self.learn()
            self.show()

    def skipped(self) -> None:
        super().skipped()
        self._pending = None

    def detach(self) -> None:
        """Leave optimizer and graph alone from now on; the values of the edges become constants."""
        super().detach()
        self._unwatch()
        if self._open:
            self.graph.val = self.graph.val.detach().clone()
            self.graph.write_(self.graph.val)

    def extra_state(self) -> dict:
        found = super().extra_state()
        return {**found, "open": int(self._open), "gates": self.gate.state()}

    def read_state(self, state: Mapping) -> Callable[[], None]:
        edges = super().read_state(state)
        check_number(self._name, "state['open']", state["open"], 0, 1)
        gates = self.gate.read(self._name, "gates", state, state["edges"]["alive"].numel())

        def apply() -> None:
            self._open, self._pending = bool(state["open"]), None
            edges()
            gates()
            if self._open:
                self.show()

        return apply

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_watch": None, "_pending": None}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        if self.attached:
            own(self.graph, self)
            if self._open:
                self._rewatch()

    # --- inner works ---

    def _collect(self) -> Tensor | None:
        """[units] the gradient of the gates, and none is left at the graph."""
        val = self.graph.val
        if self._watch is not None and self._watch.values.grad is not None:
            self._watch.settle()
        else:  # that parameter had no part in the step
            self._rewatch()
        gradient, val.grad = val.grad, None
        if not is_alone() and dist.get_world_size() > 1:
            gradient = self._averaged(torch.zeros_like(val) if gradient is None else gradient)
        if gradient is None:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"{self._name}: the edges had no gradient in a step: call the model with the graph that the "
                    "controller was given, and loss.backward() before optimizer.step()", stacklevel=2
                )  # fmt: skip
            return None
        scale = loss_scale()
        gradient = gradient / scale
        if isinstance(scale, Tensor):  # of overflow in the edges alone the scaler knows nothing
            gradient = torch.where(gradient.isfinite().all(), gradient, 0)
        return self.edges.gather(gradient)

    def _averaged(self, gradient: Tensor) -> Tensor:
        if not self._seen:
            mine = torch.tensor(
                [self.graph.num_edges, int(checksum(self.graph.col)), self.seed], device=gradient.device
            )
            least, most = mine.clone(), mine.clone()
            dist.all_reduce(least, dist.ReduceOp.MIN)
            dist.all_reduce(most, dist.ReduceOp.MAX)
            if not torch.equal(least, most):
                raise RuntimeError(f"{self._name}: all processes must have the same graph and seed, got different ones")
        dist.all_reduce(gradient)
        return gradient / dist.get_world_size()

    def _rewatch(self) -> None:
        """Let the gradient of the edges begin anew with those of the optimizer, of which one stands for all."""
        self._unwatch()
        held = [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]
        if held:
            chosen = next((p for p in reversed(held) if p.grad is not None), held[-1])
            self._watch = Accumulation(chosen, self.graph.val, recorded=False)

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.remove()
            self._watch = None
