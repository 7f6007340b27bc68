"""The `sparsegnn` command: info, train, bench.

Exit codes: 0 fine, 1 a check failed (a diverged run, say), 2 usage or bad input. Results go to stdout, everything else
to stderr. typer and rich come with the extra `cli`; without them only `info` works, as plain text.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from sparsegnn import _native

MOST_THREADS = 1024  # as csrc/common/parallel.h
USAGE = "the command line needs typer and rich: pip install 'sparsegnn[cli]' (only `sparsegnn info` works without)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line on `argv` (default: the process's arguments) and return its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [a for a in args if a != "--debug"]
    try:
        return _run(args)
    except BrokenPipeError:  # `sparsegnn info | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as e:
        if debug:
            raise
        usage = isinstance(e, (ValueError, TypeError, OSError))
        if not usage and not type(e).__name__ == "CheckFailed":
            raise  # a bug: its traceback is what the report needs
        print(f"sparsegnn: {' '.join(str(e).split())}", file=sys.stderr)
        return 2 if usage else 1


def _run(args: list[str]) -> int:
    _native.check_isa()
    try:
        import rich  # noqa: F401
        import tqdm  # noqa: F401
        import typer  # noqa: F401
    except ImportError:
        if args[:1] != ["info"]:
            print(f"sparsegnn: {USAGE}", file=sys.stderr)
            return 2
        from sparsegnn._info import info, plain_text

        print(json.dumps(info()) if "--json" in args else plain_text(info()))
        return 0
    try:
        return application()(args=args, prog_name="sparsegnn") or 0
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else 1


def application():
    """The typer application; made when it is needed, so that importing this module costs nothing."""
    import typer

    app = typer.Typer(
        help="Sparse graph neural networks: train them, measure them, see what this installation can do.",
        epilog="Exit codes: 0 fine, 1 a check failed, 2 usage or bad input. --debug shows tracebacks.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    for command in (info, train, bench):
        app.command()(_with_options(command))
    return app


# --- commands --------------------------------------------------------------------------------------------------------


def info(as_json: bool = False) -> None:
    """Versions, build flags, environment variables, and which kernels run on CPU and CUDA."""
    from sparsegnn import _info

    content = _info.info()
    if as_json:
        print(json.dumps(content))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for section in ("versions", "machine", "libraries", "build", "environment"):
        table = Table(title=section, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
        for name, value in content[section].items():
            note = _info.VARIABLES.get(name, "") if section == "environment" else ""
            table.add_row(name, "-" if value in (None, "", []) else str(value), f"[dim]{note}[/]")
        console.print(table)
    table = Table("op", "CPU", "CUDA", title="kernels", title_justify="left")
    for row in content["ops"]:
        cells = (f"[green]{c}[/]" if c == "compiled" else c for c in (row["cpu"], row["cuda"]))
        table.add_row(row["op"], *cells)
    console.print(table)


def train(
    data: str = "digits",
    model: str = "gcn",
    method: str | None = None,
    sparsity: float | None = None,
    hidden: int | None = None,
    layers: int = 2,
    heads: int = 8,
    epochs: int = 200,
    lr: float | None = None,
    weight_decay: float = 5e-4,
    dropout: float | None = None,
    input_dropout: float | None = None,
    distribution: str = "erk",
    update_every: int | None = None,
    stop_at: int | None = None,
    drop_fraction: float = 0.5,
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
    """Train a dense or sparse GCN or GAT and report accuracy, weights, FLOPs, seconds per step and peak memory."""
    options = dict(locals())
    for name in ("as_json", "seeds", "threads"):
        del options[name]
    if method is None:  # `--sparsity 0.9` alone means the default sparse method
        options["method"] = "rigl" if sparsity else "dense"
    for name, value in (("seeds", seeds), ("threads", threads)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value}")
    if threads is not None and threads > MOST_THREADS:
        raise ValueError(f"threads must be at most {MOST_THREADS}, got {threads}")
    if save is not None and seeds > 1:
        raise ValueError("save must be used with a single seed, got seeds " + str(seeds))
    import torch

    from sparsegnn import data as graphs
    from sparsegnn.train import TrainConfig, check_device, check_writable
    from sparsegnn.train import train as run

    configs = [TrainConfig(**{**options, "seed": seed + i}) for i in range(seeds)]
    check_device(device)
    check_writable(save)
    if threads is not None:
        torch.set_num_threads(threads)
    graph = graphs.load(data, split_seed=split_seed)
    result = summarize([run(config, graph) for config in configs])
    if as_json:
        print(json.dumps(result))
    else:
        _print_run(result)


def bench(
    op: str = "",
    suite: str = "",
    quick: bool = False,
    check: bool = False,
    only: str = "",
    as_json: bool = False,
) -> None:
    """Time an op against its baselines, or print a whole table of bars: `bench spmm`, `bench --suite cpu` or `h200`.

    Needs a checkout: it runs benchmarks/ there.
    """
    if bool(op) == bool(suite):
        raise ValueError("bench needs the name of an op or --suite, one of them, got " + ("both" if op else "none"))
    if op and (check or only):
        raise ValueError("check and only must be used with --suite, got op " + repr(op))
    script = "suite.py" if suite else "runner.py"
    folder = next((f for f in _checkouts() if (f / script).is_file()), None)
    if folder is None:
        raise ValueError(f"bench needs a checkout: no benchmarks/{script} here or beside the package")
    sys.path.insert(0, str(folder))
    if suite:
        _bench_suite(suite, quick, check, only, as_json)
        return
    known = sorted(
        p.stem.removeprefix("bench_") for kind in ("ops", "layers") for p in folder.glob(f"{kind}/bench_*.py")
    )
    if op not in known:
        raise ValueError(f"op must be one of {', '.join(known)}, got {op!r}")
    import runner

    rows = runner.run(op, quick=quick, table=not as_json)
    if as_json:
        print(json.dumps(rows))


def _bench_suite(name: str, quick: bool, check: bool, only: str, as_json: bool) -> None:
    import suite

    from sparsegnn.train import CheckFailed

    rows = suite.run(name, quick=quick, only=only, table=not as_json)
    if as_json:
        print(json.dumps(rows))
    below = suite.missed(rows)
    if check and below:
        raise CheckFailed(f"{len(below)} bars missed: " + "; ".join(f"{r['suite_row']} ({r['regime']})" for r in below))


# --- helpers ---------------------------------------------------------------------------------------------------------


def _checkouts() -> list[Path]:
    return [Path.cwd() / "benchmarks", Path(__file__).resolve().parents[1] / "benchmarks"]


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


def _print_run(r: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    config, seeds = r["config"], r.get("seeds")
    spread = f" ± {100 * r['test_accuracy_std']:.2f} over {len(seeds)} seeds" if seeds else ""
    phases = [r[f"seconds_{name}"] for name in ("forward", "backward", "optimizer")]
    ms = "one CUDA graph" if None in phases else ", ".join(f"{1e3 * t:.2f}" for t in phases) + " ms"
    table = Table(title=f"{r['data']}: {config['model']}, {config['method']}", show_header=False, title_justify="left")
    for name, value in (
        ("test accuracy", f"{100 * r['test_accuracy']:.2f} %{spread}"),
        ("validation accuracy", f"{100 * r['val_accuracy']:.2f} % (epoch {r['best_epoch']})"),
        ("sparsity", f"{100 * r['sparsity']:.2f} %: {r['weights']:,} of {r['weights_dense']:,} weights"),
        ("training FLOPs", "not counted" if r["flops"] is None else f"{r['flops']:.3g}"),
        ("step", f"{1e3 * r['seconds_per_step']:.2f} ms"),
        ("forward, backward, optimizer", ms),
        ("peak memory", f"{r['peak_memory_bytes'] / 2**20:.0f} MiB, {r['run_memory_bytes'] / 2**20:.0f} by this run"),
        ("graph", f"{r['nodes']:,} nodes, {r['edges']:,} edges; " + "; ".join(r["notes"])),
    ):
        table.add_row(name, value)
    Console().print(table)


def _with_options(command):
    """The command with typer options: names from the arguments, help from TrainConfig's docstring."""
    import inspect

    import typer

    from sparsegnn.train import METHODS, field_docs

    docs = field_docs() | {
        "data": "digits, skewed, a path to an .npz file, a name in SPARSEGNN_DATA or ./data, or a set PyG downloads",
        "model": "gcn or gat",
        "method": f"{', '.join(METHODS)}; default rigl if --sparsity is given, else dense",
        "layers": "convolutions",
        "heads": "attention heads of hidden GAT layers",
        "epochs": "full-batch steps",
        "lr": "Adam's step size; 0.01 (GCN), 0.005 (GAT)",
        "dropout": "0.5 (GCN), 0.6 (GAT)",
        "seed": "seed of weights, dropout and mask updates",
        "seeds": "number of runs, with seeds SEED, SEED+1, ...; the means are reported",
        "split_seed": "seed of the 60/20/20 split of sets without masks",
        "device": "cpu or cuda[:index]",
        "threads": "CPU threads; default torch's",
        "as_json": "print one JSON object",
        "quick": "fewer and smaller cases",
        "op": "an op or layer with a file bench_OP.py in benchmarks/ops or benchmarks/layers",
        "suite": "a table of bars: benchmarks/suites/SUITE.py; cpu, or h200 on a GPU",
        "check": "exit with 1 when a bar of the suite is missed",
        "only": "groups of the suite whose name contains this; nothing is written",
    }
    signature = inspect.signature(command, eval_str=True)
    parameters = []
    for name, p in signature.parameters.items():
        if name == "op":
            default = typer.Argument(p.default, help=docs[name])
        elif name == "as_json":
            default = typer.Option(False, "--json", help=docs[name])
        else:
            default = typer.Option(p.default, help=docs.get(name))
        parameters.append(p.replace(default=default))

    def run(**kwargs):
        command(**kwargs)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = signature.replace(parameters=parameters)
    run.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()}
    return run
