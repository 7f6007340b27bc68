"""How much the loss of a training loop has changed, for a controller, which sees its gradients but never the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sparsegnn.controllers.settings import check_names, check_number, check_tensors


class LossChange:
    """The integral of the gradient along the path that the parameters took, by the trapezoidal rule.

    ``sum over steps of <g_t + g_(t+1), w_(t+1) - w_t> / 2`` over all parameters of the optimizer: exact for a quadratic
    loss of the whole data. With batches, or dropout, g_t holds noise that the step has followed, so that the change
    comes out somewhat too low.
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer
        self.total: Tensor | float = 0.0  # a tensor: nobody waits for a GPU before the sum is asked for
        self.weights: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}

    def add(self, scale: float | Tensor = 1.0) -> None:
        """Go on to the parameters as they are, whose gradients are ``scale`` times too large."""
        with_gradients = {name: p for name, p in self._parameters().items() if p.grad is not None}
        weights = {name: p.detach().clone() for name, p in with_gradients.items()}
        gradients = {name: p.grad.detach().to_dense().clone().div_(scale) for name, p in with_gradients.items()}
        for name, w in weights.items():
            if name in self.weights:  # one without a gradient has not moved
                moved = (w - self.weights[name]) * (gradients[name] + self.gradients[name])
                self.total = self.total + moved.sum(dtype=torch.float64).to(next(iter(weights.values())).device) / 2
        self.weights, self.gradients = {**self.weights, **weights}, {**self.gradients, **gradients}

    def reset(self) -> None:
        """Measure from here on."""
        self.total = 0.0

    def forget(self) -> None:
        """No path: nothing to go on from."""
        self.weights, self.gradients, self.total = {}, {}, 0.0

    def state(self) -> dict:
        held = {"weights": self.weights, "gradients": self.gradients}
        return {"total": float(self.total), **{k: {n: t.clone() for n, t in v.items()} for k, v in held.items()}}

    def read(self, op: str, state: Mapping, shapes: Mapping[Tensor, torch.Size]) -> Callable[[], None]:
        """Check what :meth:`state` returned; returns what then makes that its own.

        Shapes of parameters that may have had another one then, if any, are in ``shapes``.
        """
        state = check_names(op, "loss_change", state, ("total", "weights", "gradients"))
        total, found = check_number(op, "total", state["total"], -math.inf, math.inf), {}
        for key in ("weights", "gradients"):
            held = state[key] if isinstance(state[key], Mapping) else ()
            known = {name: p.detach().new_empty(shapes.get(p, p.shape)) for name, p in self._parameters().items()}
            found[key] = check_tensors(op, key, state, {name: t for name, t in known.items() if name in held})

        def apply() -> None:
            self.total, self.weights, self.gradients = total, found["weights"], found["gradients"]

        return apply

    def _parameters(self) -> dict[str, Tensor]:
        every = (p for group in self.optimizer.param_groups for p in group["params"])
        return {str(i): p for i, p in enumerate(every)}
