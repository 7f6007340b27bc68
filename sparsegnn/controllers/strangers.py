"""What the program does behind the back of a controller: other optimizers, and averages that are replaced."""

from __future__ import annotations

import sys
import warnings
import weakref

import torch
from torch import Tensor, optim
from torch.optim.optimizer import register_optimizer_step_post_hook

_controllers: weakref.WeakSet = weakref.WeakSet()  # those that move weights
_known: weakref.WeakKeyDictionary[optim.Optimizer, int] = weakref.WeakKeyDictionary()  # looked at with so many made
_made = 0


def watch(controller) -> None:
    """Warn of optimizers that step the layers of ``controller`` without its knowledge."""
    global _made
    if not controller.moves_weights:
        return
    if _made == 0:
        register_optimizer_step_post_hook(_after_any_step)
    _made += 1
    _controllers.add(controller)


@torch._disable_dynamo
def _after_any_step(optimizer: optim.Optimizer, args, kwargs) -> None:
    if _known.get(optimizer) == _made:
        return
    _known[optimizer] = _made
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for controller in list(_controllers):
        own = controller.optimizer
        if own is optimizer or not controller.attached or controller.step >= controller.stop_at:
            continue
        around = any(value is own for value in vars(optimizer).values())  # SAM, Lookahead
        names = [name for name, layer in controller.layers.items() if id(layer.values) in held]
        if names and not around:
            kind, name = type(optimizer).__name__, type(controller).__name__
            warnings.warn(
                f"{name}: the layers {names} are stepped by another optimizer too, a {kind}: its steps are not "
                "counted, and what it keeps for each weight does not move along. detach() this controller, and make "
                "one with the optimizer that trains these layers",
                stacklevel=3,
            )


def without_gone(op: str, along: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
    """``along`` without the averages that only the controller still holds, with a warning."""
    alone = _holders([torch.empty(1)])[0]
    gone = {name for name, tensors in along.items() if alone in _holders(tensors)}
    if not gone:
        return along
    warnings.warn(
        f"{op}: averages of the layers {sorted(gone)} that move_along() was given are held by nobody else any more, "
        "and are forgotten; where an average is a new tensor at each update, write it into the old one (lerp_, copy_)",
        stacklevel=3,
    )
    return {n: [t for t, h in zip(ts, _holders(ts), strict=True) if h != alone] for n, ts in along.items()}


def _holders(tensors: list[Tensor]) -> list[tuple[int, int]]:
    """How many references each tensor has, and its memory."""
    return [(sys.getrefcount(t), torch._C._storage_Use_Count(t.untyped_storage()._cdata)) for t in tensors]
