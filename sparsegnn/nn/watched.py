"""Whether somebody watches the calls of a module, so that its parts may not serve in place of a call."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as hooks
from torch.utils.module_tracker import ModuleTracker


def is_unwatched(module: nn.Module) -> bool:
    """Whether a call of ``module`` is its class's ``forward`` and nothing else: without hooks, its own or global."""
    own = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    if own or "forward" in module.__dict__:
        return False
    if hooks._global_backward_hooks or hooks._global_backward_pre_hooks:
        return False
    ahead = (*hooks._global_forward_hooks.values(), *hooks._global_forward_pre_hooks.values())
    return not ahead or all(isinstance(getattr(h, "__self__", None), ModuleTracker) for h in ahead)  # which counts
