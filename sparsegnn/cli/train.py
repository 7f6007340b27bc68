"""`sparsegnn train`: one training run, or one for each of several seeds."""

from __future__ import annotations

import dataclasses
import json
import os

from sparsegnn import _console
from sparsegnn.cli.results import run_table, summarize

MOST_THREADS = 1024  # as csrc/common/parallel.h


def train(
    data: str = "digits",
    model: str = "gcn",
    method: str | None = None,
    sparsity: float | None = None,
    hidden: int | None = None,
    layers: int = 2,
    heads: int = 8,
    residual: bool = False,
    layer_norm: bool = False,
    maxk: int | None = None,
    dtype: str = "float32",
    hops: int | None = None,
    epochs: int = 200,
    lr: float | None = None,
    weight_decay: float = 5e-4,
    dropout: float | None = None,
    input_dropout: float | None = None,
    distribution: str | None = None,
    pattern: str | None = None,
    update_every: int | None = None,
    stop_at: int | None = None,
    drop_fraction: float | None = None,
    set: list[str] | None = None,
    eval_every: int = 1,
    seed: int = 0,
    seeds: int = 1,
    split_seed: int = 0,
    device: str = "cpu",
    threads: int | None = None,
    backend: str = "sparsegnn",
    cuda_graph: bool = False,
    save: str | None = None,
    progress: bool | None = None,
    as_json: bool = False,
) -> None:
    """Train a dense or sparse network and report accuracy, weights, FLOPs, seconds per step and peak memory."""
    options = dict(locals())
    for name in ("as_json", "seeds", "threads"):
        del options[name]
    for name, value in (("seeds", seeds), ("threads", threads)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value}")
    if threads is not None and threads > max(MOST_THREADS, os.cpu_count() or 1):
        raise ValueError(f"threads must be at most {MOST_THREADS} or the number of processors, got {threads}")
    if save is not None and seeds > 1:
        raise ValueError("save must be used with a single seed, got seeds " + str(seeds))
    import torch

    from sparsegnn import data as graphs
    from sparsegnn.experiments.config import DEFAULT, DENSE, TrainConfig, check_device, check_writable
    from sparsegnn.experiments.train import NotSaved
    from sparsegnn.experiments.train import train as run

    if method is None:  # `--sparsity 0.9` alone means the default sparse method
        options["method"] = DEFAULT if sparsity else DENSE
    options["set"] = _settings(options["method"], set or [])
    options["distribution"] = _distribution(distribution)
    configs = [TrainConfig(**{**options, "seed": s}) for s in (seed, seed + seeds - 1)]  # of the first and last run
    check_device(device)
    check_writable(save)
    if threads is not None:
        torch.set_num_threads(threads)
    graph = graphs.load(data, split_seed=split_seed)
    runs, failure = [], None
    try:
        for i in range(seeds):
            runs.append(run(dataclasses.replace(configs[0], seed=seed + i), graph))
    except BaseException as e:  # what is done is reported first
        runs += [e.result] if isinstance(e, NotSaved) else []
        if not runs:
            raise
        failure = e
    result = summarize(runs)
    if as_json:
        kind = type(failure).__name__
        error = {"error": str(failure) or kind, "type": kind} if failure else {}
        print(_console.json_text(result | error))
    else:
        print(run_table(result), end="")
    if failure:
        raise failure


def _settings(method: str, texts: list[str]) -> dict:
    """The values of --set."""
    from sparsegnn.cli.settings import find, read
    from sparsegnn.controllers.settings import shown
    from sparsegnn.experiments.config import DENSE

    if method != DENSE:
        return read(find(method, (DENSE,)), texts)
    if texts:
        raise ValueError(f"set must be left out for method {DENSE!r}, which has no settings, got {shown(texts[0])}")
    return {}


def _distribution(text: str | None) -> str | dict | None:
    """A name, or the sparsity of each layer as JSON."""
    if text is None or not text.startswith("{"):
        return text
    from sparsegnn.controllers.settings import shown

    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"distribution must be a name or JSON {{layer: sparsity}}, got {shown(text)}: {e}") from None
