"""Trainable numbers that are no parameters of the model, with an Adam of their own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sparsegnn.controllers.settings import check_int, check_names, check_tensors


class Gates:
    """``theta`` [P, n], P numbers for each of n gates, and the moments of Adam (Kingma and Ba, ICLR 2015)."""

    def __init__(self, theta: Tensor, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        self.lr, self.betas, self.eps, self.steps = lr, betas, eps, 0
        self.theta, self.exp_avg, self.exp_avg_sq = theta, torch.zeros_like(theta), torch.zeros_like(theta)

    @torch.no_grad()
    def learn(self, objective: Callable[[Tensor], Tensor]) -> None:
        """One step of Adam down ``objective(theta)``; its autograd graph ends here."""
        with torch.enable_grad():
            theta = self.theta.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(objective(theta), theta)
        self.steps += 1
        first, second = self.betas
        self.exp_avg.lerp_(gradient, 1 - first)
        self.exp_avg_sq.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        rate = self.lr / (1 - first**self.steps)
        root = (self.exp_avg_sq / (1 - second**self.steps)).sqrt_().add_(self.eps)
        self.theta.addcdiv_(self.exp_avg, root, value=-rate)

    def keep(self, index: Tensor) -> None:
        """The gates ``index`` alone."""
        self.theta, self.exp_avg, self.exp_avg_sq = (t[:, index] for t in (self.theta, self.exp_avg, self.exp_avg_sq))

    def state(self) -> dict:
        return {"steps": self.steps, **{name: getattr(self, name).clone() for name in TENSORS}}

    def read(self, op: str, key: str, state: Mapping, n: int) -> Callable[[], None]:
        """Check ``state[key]``, of ``n`` gates; returns what makes it that of these."""
        found = check_names(op, key, state, ["steps", *TENSORS])
        steps = check_int(op, f"state['{key}']['steps']", found["steps"], 0)
        tensors = {name: found[name] for name in TENSORS}
        read = check_tensors(
            op, key, {key: tensors}, {name: self.theta.new_empty(len(self.theta), n) for name in TENSORS}
        )

        def apply() -> None:
            self.steps = steps
            for name, t in read.items():
                setattr(self, name, t)

        return apply


TENSORS = ("theta", "exp_avg", "exp_avg_sq")


def loss_scale() -> Tensor | float:
    """What the GradScaler that makes this step multiplied the loss by, 1 without one.

    It divides the gradients again that the optimizer holds, and no others.
    """
    frame, code = sys._getframe(1), torch.amp.GradScaler.step.__code__
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    scaler = None if frame is None else frame.f_locals["self"]
    return scaler._get_scale_async() if scaler is not None and scaler.is_enabled() else 1.0
