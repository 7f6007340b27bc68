"""`sparsegnn advise`: what would make a training step of `sparsegnn train` faster on this machine."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager

from sparsegnn import _console
from sparsegnn.cli.train import MOST_THREADS, train

#: options of a run that do not change what a dense step is
OF_A_RUN = frozenset((
    "method", "sparsity", "epochs", "distribution", "pattern", "update_every", "stop_at", "drop_fraction", "set",
    "eval_every", "seeds", "cuda_graph", "save", "threads", "progress", "as_json",
))  # fmt: skip


def advise(seconds: float = 50.0, threads: int | None = None, progress: bool | None = None, as_json: bool = False,
           **options) -> None:  # fmt: skip
    """Measure a training step in parts, price weight sparsity, MaxK, bf16 and a narrower net, and measure the best."""
    from sparsegnn.advice.run import advise as run
    from sparsegnn.experiments.config import TrainConfig

    with threads_of(threads):
        found = run(TrainConfig(**options), seconds=seconds, show=not as_json, progress=progress)
    if as_json:
        print(_console.json_text(found))


@contextmanager
def threads_of(threads: int | None) -> Iterator[None]:
    """So many threads within."""
    if threads is not None and not 1 <= threads <= max(MOST_THREADS, os.cpu_count() or 1):
        raise ValueError(f"threads must be a positive integer, at most {MOST_THREADS} or the number of processors, "
                         f"got {threads}")  # fmt: skip
    import torch

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads or before)
        yield
    finally:
        torch.set_num_threads(before)


def _signature() -> inspect.Signature:
    """The options of `train` that make a model, as it has them, and our own."""
    of_train = inspect.signature(train, eval_str=True).parameters.values()
    own = inspect.signature(advise, eval_str=True).parameters.values()
    model = [p for p in of_train if p.name not in OF_A_RUN]
    given = [p for p in own if p.kind is not p.VAR_KEYWORD]
    return inspect.Signature([p.replace(kind=p.KEYWORD_ONLY) for p in (*model, *given)])


advise.__signature__ = _signature()
