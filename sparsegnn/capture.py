"""A whole training step as CUDA graphs: forward, backward, optimizer, and the updates of sparse training.

A step of a small graph network is a hundred kernels of a few microseconds each, which Python launches more slowly than
the GPU runs them. A graph launches all of them at once.

There are two graphs, of a step without and of one with an update: the dense gradient that an update looks at costs as
much as a dense layer, and nine steps of ten need none. What changes between the replays of one graph is on the device:
the number of weights that move (the schedule's, written there before each update), random scores, the optimizer's step
count, the state of torch's generator, which every replay advances, so dropout draws anew.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sparsegnn.controllers import Controller
from sparsegnn.controllers.settings import check_int

OP = "CapturedStep"


class CudaGraphs:
    """Runs work on a stream of its own, and records it there. The graphs share their memory, so one runs at a time."""

    def __init__(self, device: torch.device):
        self.stream, self.pool = torch.cuda.Stream(device), None

    def run(self, work: Callable[[], None]) -> None:
        """Do ``work`` now."""
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            work()
        current.wait_stream(self.stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """What does ``work``, of which only the Python part happens now, each time it is called."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self.stream):  # gives the caller's stream back where a capture fails, too
            with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
                work()
        self.pool = graph.pool()
        return graph.replay

    def forget(self) -> None:
        """The graphs so far will not be replayed again; their memory goes with them."""
        self.pool = None


class CapturedStep:
    """Your training step, recorded as CUDA graphs and replayed.

    The first ``warm_up`` steps, and the first one with an update of each controller, run as they are; then a step of
    each kind is recorded once. All of them are steps of the training, with the results of the loop without graphs::

        def step(x, y):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x, graph), y)
            loss.backward()
            optimizer.step()
            return loss

        step = sparsegnn.CapturedStep(step, optimizer)
        for x, y in batches:
            loss = step(x, y)

    Controllers attached to the optimizer are found and followed: after every call their counters, and the state of
    model, optimizer and controllers, are those of the plain loop, so checkpoints are too. Gradual magnitude pruning
    changes the sizes of tensors: its update steps run as they are, and what follows is recorded anew.

    Recorded anew, too, after ``load_state_dict`` of the optimizer, and whenever a number in its ``param_groups``
    changes; for a schedule give it ``lr=torch.tensor(...)``, which changes in place. Nothing in ``step`` may wait for
    the GPU (``.item()``, boolean masks, GradScaler) or depend on Python values that change from call to call, except in
    the controllers. Build graphs (``CSRGraph``) before. Train with ``model.train()`` from the first call on.

    Args:
        step: ``step(*inputs) -> loss``, a Tensor: a whole step, ``optimizer.zero_grad()`` included.
        optimizer: SGD, or another made with ``capturable=True``, whose parameters are on one GPU.
        warm_up: steps before anything is recorded, at least 1.
        graphs: how steps are run and recorded, with the methods of :class:`CudaGraphs`, the default.
    """

    def __init__(
        self,
        step: Callable[..., Tensor],
        optimizer: torch.optim.Optimizer,
        *,
        warm_up: int = 3,
        graphs: CudaGraphs | None = None,
    ):
        if not callable(step):
            raise TypeError(f"{OP}: step must be callable, got {type(step).__name__}")
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"{OP}: optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        self.step, self.optimizer, self.warm_up = step, optimizer, check_int(OP, "warm_up", warm_up, 1)
        self.device = check_device(optimizer, graphs is None)
        self.graphs = CudaGraphs(self.device) if graphs is None else graphs
        self.controllers: list[Controller] = []
        self.steps = 0  # made by running
        self._inputs: tuple[Tensor, ...] | None = None
        self._loss: Tensor | None = None
        self.forget()

    def forget(self) -> None:
        """Drop the graphs; the next steps run as they are and are recorded again."""
        self._replays: dict[tuple[bool, ...], Callable[[], None]] = {}
        self._ran: set[tuple[bool, ...]] = set()  # kinds of steps, by which controllers update in them
        self._recorded: tuple = ()
        self.graphs.forget()
        self.controllers = attached(self.optimizer)
        for controller in self.controllers:
            controller.make_static()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Make a step on a copy of ``inputs``, of the shapes and dtypes of the first call; returns a copy of the loss.

        Nobody waits for the GPU; ``loss.item()`` does.
        """
        self._take(inputs)
        if self._replays and self._recorded != self._signature():
            self.forget()
        kind = tuple(c.due(c.step + 1) for c in self.controllers)
        updating = [c for c, due in zip(self.controllers, kind, strict=True) if due]
        if not all(c.keeps_size for c in updating):
            self.forget()
            self._run()
        else:
            for controller in updating:
                controller.prepare(controller.step + 1)
            if kind in self._replays:
                self._replays[kind]()
                for controller in self.controllers:
                    controller.follow()
            elif self.steps < self.warm_up or kind not in self._ran:
                self._run()
                self._ran.add(kind)
            else:
                self._record(kind)
        return self._loss.clone()

    def __repr__(self) -> str:
        return f"{OP}({len(self._replays)} graphs, controllers={self.controllers})"

    # --- inner works ---

    def _take(self, inputs: tuple[Tensor, ...]) -> None:
        for x in inputs:
            if not isinstance(x, Tensor):
                raise TypeError(f"{OP}: inputs must be Tensors, got {type(x).__name__}")
        if self._inputs is None:
            self._inputs = tuple(x.detach().to(self.device, copy=True) for x in inputs)
            return
        want, got = ([(x.dtype, list(x.shape)) for x in xs] for xs in (self._inputs, inputs))
        if want != got:
            raise ValueError(f"{OP}: inputs must be as in the first call, {want}, got {got}")
        with torch.no_grad():
            for mine, x in zip(self._inputs, inputs, strict=True):
                mine.copy_(x, non_blocking=True)

    def _work(self) -> None:
        loss = self.step(*self._inputs)
        if not isinstance(loss, Tensor):
            raise TypeError(f"{OP}: step must return the loss, a Tensor, got {type(loss).__name__}")
        if self._loss is None:
            self._loss = torch.empty_like(loss.detach())
        self._loss.copy_(loss.detach())

    def _run(self) -> None:
        self.graphs.run(self._work)
        self.steps += 1

    def _record(self, kind: tuple[bool, ...]) -> None:
        before = [(c.step, c.updates) for c in self.controllers]
        try:
            replay = self.graphs.record(self._work)  # the controllers count this step here, as after running it
        except BaseException as error:
            for controller, counters in zip(self.controllers, before, strict=True):
                controller.undo(*counters)
            if not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError):
                raise
            raise RuntimeError(
                f"{OP}: step must not wait for the GPU (.item(), nonzero, boolean masks, GradScaler) or build graphs; "
                f"recording it failed: {error}"
            ) from error
        self._replays[kind], self._recorded = replay, self._signature()
        replay()

    def _signature(self) -> tuple:
        """What a graph holds as numbers and addresses, apart from what the step itself brings."""
        groups, parts = self.optimizer.param_groups, []
        for group in groups:
            rest = {k: v.data_ptr() if isinstance(v, Tensor) else v for k, v in group.items() if k != "params"}
            parts.append((rest, [p.data_ptr() for p in group["params"]]))
        hooks = list(self.optimizer._optimizer_step_post_hooks.values())
        layers = [layer for c in self.controllers for layer in c.layers.values()]
        return parts, _Same(self.optimizer.state), hooks, {id(copy) for layer in layers for copy in layer._copies or ()}


class _Same:
    """Equal to nothing but itself: load_state_dict of an optimizer makes its state a new object."""

    def __init__(self, what: object):
        self.what = what

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.what is other.what

    __hash__ = None


def attached(optimizer: torch.optim.Optimizer) -> list[Controller]:
    """The controllers of an optimizer; ValueError if it has other hooks, which a replay would not call."""
    hooks = [*optimizer._optimizer_step_pre_hooks.values(), *optimizer._optimizer_step_post_hooks.values()]
    found = [getattr(hook, "__self__", None) for hook in hooks]
    for hook, owner in zip(hooks, found, strict=True):
        if not isinstance(owner, Controller):
            raise ValueError(f"{OP}: optimizer must have no step hooks but those of controllers, got {hook}")
        if owner.every_step:
            raise ValueError(f"{OP}: optimizer must have no controller that acts at every step, which a replay would "
                             f"not call, got {owner}; train without {OP}")  # fmt: skip
    return list(dict.fromkeys(found))


def check_device(optimizer: torch.optim.Optimizer, gpu: bool) -> torch.device:
    """The device of the parameters; raise unless it is one, and with ``gpu`` one whose steps a CUDA graph can hold."""
    devices = {p.device for group in optimizer.param_groups for p in group["params"]}
    if len(devices) != 1 or (gpu and next(iter(devices)).type != "cuda"):
        got = ", ".join(sorted(map(str, devices))) or "none"
        raise ValueError(
            f"{OP}: optimizer must hold parameters on one GPU, got {got}; where there is none, call the step itself"
        )
    captured = all(group.get("capturable", False) for group in optimizer.param_groups)
    if gpu and not captured and not isinstance(optimizer, torch.optim.SGD):
        kind = type(optimizer).__name__
        raise ValueError(f"{OP}: optimizer must be SGD or have capturable=True, got {kind} without")
    return devices.pop()
