"""Training in batches, for tasks whose epochs are passes over a training set: links and traffic."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict

import torch
from torch import Tensor, nn

from sparsegnn import _console
from sparsegnn.experiments.loop import Account, CheckFailed, Selection, used_settings
from sparsegnn.experiments.method import BatchSettings, is_plain
from sparsegnn.experiments.models.shapes import linears


def fit(config: BatchSettings, name: str, model: nn.Module, optimizer: torch.optim.Optimizer, account: Account, *,
        batches: Callable[[], Iterable[tuple[Tensor, ...]]], loss: Callable[..., Tensor],
        evaluate: Callable[[], None], decay: float = 1.0) -> None:  # fmt: skip
    """Train for ``config.epochs`` passes.

    Args:
        batches: the batches of an epoch, each a tuple of tensors, made before the clock of their step starts.
        loss: of one batch.
        evaluate: offers the step that was just made to a selection, every ``config.eval_every`` epochs and at the end,
            once sparsity is final.
        decay: factor of the learning rate after each epoch.
    """
    from tqdm import tqdm

    stderr = _console.diagnostics()
    hidden = not (stderr.isatty() if config.progress is None else config.progress)
    title = f"{_console.clean(name)[:40]} {config.model} {_console.clean(config.method)[:40]}"
    for epoch in tqdm(range(config.epochs), title, disable=hidden, delay=2, leave=False, file=stderr):
        model.train()
        for batch in batches():
            with account.step(batch[0].size(0)) as timer:
                with timer.phase("forward"):
                    value = loss(*batch)
                with timer.phase("backward"):
                    value.backward()
                with timer.phase("optimizer"):
                    optimizer.step()
                    optimizer.zero_grad()
            if not math.isfinite(value.item()):
                raise CheckFailed(f"training diverged: loss {value.item()} in epoch {epoch} (lr {config.lr})")
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * decay
        last = epoch + 1 == config.epochs
        if account.may_select and (last or (epoch + 1) % config.eval_every == 0):
            model.eval()
            with torch.no_grad():
                evaluate()


def result(config: BatchSettings, task: str, data, model: nn.Module, account: Account, selection: Selection) -> dict:
    """What the results of these tasks have in common: the keys of all tasks, and what ran with which settings."""
    from sparsegnn.report import kernel

    maps, ours = linears(model), {}
    for name, m in model.named_modules():
        if name in maps or (type(m).__module__.startswith("sparsegnn.nn.") and name):
            ours[name] = kernel(m)
    return {
        "task": task,
        "data": data.name,
        **account.result(selection),
        "settings": {k: v if is_plain(v) else str(v) for k, v in used_settings(config, config.steps).items()},
        "kernels": ours,
        "patterns": {n: m.structure for n, m in maps.items() if hasattr(m, "structure")},
        "notes": list(data.notes),
        "config": {k: v for k, v in asdict(config).items() if k != "progress"},
    }
