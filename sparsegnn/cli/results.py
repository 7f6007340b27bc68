"""What runs of a training came to: one object, and one table."""

from __future__ import annotations

import statistics

from sparsegnn import _console


def summarize(runs: list[dict]) -> dict:
    """One object for several seeds: means of the numbers, the runs under `runs`; a single run stays as it is."""
    if len(runs) == 1:
        return runs[0]
    result = dict(runs[0])
    for name, value in runs[0].items():
        if isinstance(value, float) or name in ("flops", "peak_memory_bytes", "run_memory_bytes"):
            result[name] = None if value is None else statistics.fmean(r[name] for r in runs)
    for name in ("test_accuracy", "val_accuracy"):
        result[f"{name}_std"] = statistics.stdev(r[name] for r in runs)
    result["seeds"] = [r["config"]["seed"] for r in runs]
    result["runs"] = runs
    return result


def run_table(r: dict) -> str:
    config, seeds = r["config"], r.get("seeds")
    spread = f" ± {100 * r['test_accuracy_std']:.2f} over {len(seeds)} seeds" if seeds else ""
    phases = [r[f"seconds_{name}"] for name in ("forward", "backward", "optimizer")]
    timed = r["seconds_per_step"] == r["seconds_per_step"]  # no step is where every one was counted
    ms = "one CUDA graph" if None in phases else ", ".join(f"{1e3 * t:.2f}" for t in phases) + " ms"
    sparser = r["edges_at_end"] != r["edges_at_start"]
    rows = (
        ("test accuracy", f"{100 * r['test_accuracy']:.2f} %{spread}"),
        ("validation accuracy", f"{100 * r['val_accuracy']:.2f} % (epoch {r['best_epoch']})"),
        ("sparsity", f"{100 * r['sparsity']:.2f} %: {r['weights']:,} of {r['weights_dense']:,} weights"),
        *([("edges", f"{r['edges_at_end']:,} of {r['edges_at_start']:,}")] if sparser else []),
        *([("phases", ", ".join(f"{p} from step {n}" for p, n in r["phases"]))] if len(r["phases"]) > 1 else []),
        ("training FLOPs", "not counted" if r["flops"] is None else f"{r['flops']:.3g}"),
        ("step", f"{1e3 * r['seconds_per_step']:.2f} ms" if timed else "not timed"),
        ("forward, backward, optimizer", ms if timed else "not timed"),
        ("peak memory", f"{r['peak_memory_bytes'] / 2**20:.0f} MiB, {r['run_memory_bytes'] / 2**20:.0f} by this run"),
        ("graph", f"{r['nodes']:,} nodes, {r['edges']:,} edges; " + "; ".join(r["notes"])),
    )
    return _console.table(f"{r['data']}: {config['model']}, {config['method']}", rows, box="SQUARE")
