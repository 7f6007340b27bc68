"""The `sparsegnn` command: info, train, bench.

Exit codes: 0 fine, 1 a check failed (a diverged run, say) or a bug, 2 usage, bad input or a full disk, 128 + n after
signal n (130: Ctrl-C). A reader of the output that leaves is no error. Results go to stdout, everything else to stderr,
which also gets the results that stdout cannot take. With --json stdout is one strict JSON value, for an error too:
`{"error": message, "type": class}`. typer and rich come with the extra `cli`; without them only `info` works, as plain
text.
"""

from __future__ import annotations

import dataclasses
import io
import os
import signal
import statistics
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from sparsegnn import _console

MOST_THREADS = 1024  # as csrc/common/parallel.h
USAGE = "the command line needs typer and rich: pip install 'sparsegnn[cli]' (only `sparsegnn info` works without)"


class Terminated(BaseException):
    """SIGTERM or SIGHUP: what is half done is undone on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(f"terminated by {signal.Signals(number).name}")
        self.exit_code = 128 + number


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line on `argv` (default: the process's arguments) and return its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug, as_json = "--debug" in args, "--json" in args
    args = [a for a in args if a != "--debug"]
    with _console.command_line() as (out, error), _terminated_by_exception():
        try:
            code = _run(args)
        except _console.ReaderGone:
            return 0
        except BaseException as e:
            code, message, kind = _explain(e, error, debug)
            if as_json and not out.used:  # else stdout has its one value: the result, of a check that failed
                with suppress(_console.ReaderGone):
                    out.write(_console.json_text({"error": message, "type": kind}) + "\n")
        if out.failure:
            error.write(f"sparsegnn: stdout cannot be written: {_console.clean(out.failure)}\n")
        return 2 if out.failure and not code else code


def _run(args: list[str]) -> int:
    from sparsegnn import _native

    _native.check_isa()
    try:
        import rich  # noqa: F401
        import tqdm  # noqa: F401
        import typer  # noqa: F401
    except ImportError:
        if args[:1] != ["info"]:
            raise ValueError(USAGE) from None
        info(as_json="--json" in args)
        return 0
    command = application()(args=args, prog_name="sparsegnn", standalone_mode=False)
    if not callable(command):  # the exit code of --help
        return command or 0
    command()  # outside of typer, which has rules of its own for some exceptions
    return 0


def _explain(e: BaseException, error: _console.Stream, debug: bool) -> tuple[int, str, str]:
    """Say on stderr what went wrong; the exit code, the message and the kind of error."""
    kind = type(e).__name__
    if hasattr(e, "format_message"):  # a ClickException, of click or of the copy in typer
        shown = io.StringIO()
        e.show(file=shown)
        error.write("".join(f"{_console.clean(line)}\n" for line in shown.getvalue().splitlines()))
        return e.exit_code, " ".join(e.format_message().split()), kind
    if isinstance(e, SystemExit) and not isinstance(e.code, str):
        return int(e.code or 0), f"exit code {e.code}", kind
    code = {"CheckFailed": 1, "KeyboardInterrupt": 130, "SystemExit": 1}.get(kind, 2)
    if isinstance(e, Terminated):
        code = e.exit_code
    bug = code == 2 and not _bad_input(e)
    message = " ".join(str(e).split()) or ("interrupted" if code == 130 else kind)
    if isinstance(e, RuntimeError) and "SPARSEGNN_ISA" in message:  # without the place in C++
        message = message[message.index("SPARSEGNN_ISA") :]
    if debug or bug:  # of which the report needs the traceback
        lines = "".join(traceback.format_exception(e)).split("\n")
        error.write("\n".join(_console.clean(line) for line in lines))
    error.write(f"sparsegnn: {_console.clean(message)}\n")
    return 1 if bug else code, message, kind


def _bad_input(e: BaseException) -> bool:
    """Whether the user, rather than a bug, is what an exception comes from."""
    if isinstance(e, RuntimeError):  # of torch and of the libraries
        return any(words in str(e) for words in ("out of memory", "can't allocate memory", "SPARSEGNN_ISA"))
    return isinstance(e, (ValueError, TypeError, OSError, MemoryError, OverflowError))


@contextmanager
def _terminated_by_exception() -> Iterator[None]:
    """SIGTERM and SIGHUP raise Terminated, unless the process was told to ignore them."""

    def raise_it(number, frame):
        signal.signal(number, signal.SIG_IGN)  # the first one is on its way
        raise Terminated(number)

    changed = []
    with suppress(ValueError):  # only the main thread may
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, raise_it)
                changed.append(number)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def application():
    """The typer application; made when it is needed, so that importing this module costs nothing."""
    import typer

    app = typer.Typer(
        help="Sparse graph neural networks: train them, measure them, see what this installation can do.",
        epilog="Exit codes: 0 fine, 1 a check failed, 2 usage or bad input, 130 interrupted. --debug shows tracebacks.",
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
        print(_console.json_text(content))
        return
    for section in ("versions", "machine", "libraries", "build", "environment"):
        notes = _info.VARIABLES if section == "environment" else {}
        rows = [(name, _info.text(value), (notes.get(name, ""), "dim")) for name, value in content[section].items()]
        print(_console.table(section, rows), end="")
    green = {"compiled": "green"}
    rows = [(row["op"], *((row[d], green.get(row[d], "")) for d in ("cpu", "cuda"))) for row in content["ops"]]
    print(_console.table("kernels", rows, ("op", "CPU", "CUDA"), box="SIMPLE_HEAD"), end="")


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
    if threads is not None and threads > max(MOST_THREADS, os.cpu_count() or 1):
        raise ValueError(f"threads must be at most {MOST_THREADS} or the number of processors, got {threads}")
    if save is not None and seeds > 1:
        raise ValueError("save must be used with a single seed, got seeds " + str(seeds))
    import torch

    from sparsegnn import data as graphs
    from sparsegnn.train import NotSaved, TrainConfig, check_device, check_writable
    from sparsegnn.train import train as run

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
        print(_run_table(result), end="")
    if failure:
        raise failure


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
    script = "harness/suite.py" if suite else "harness/runner.py"
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
    from harness import runner

    rows = runner.run(op, quick=quick, table=not as_json)
    if as_json:
        print(_console.json_text(rows))


def _bench_suite(name: str, quick: bool, check: bool, only: str, as_json: bool) -> None:
    from harness import suite

    from sparsegnn.train import CheckFailed

    rows = suite.run(name, quick=quick, only=only, table=not as_json)
    if as_json:
        print(_console.json_text(rows))
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


def _run_table(r: dict) -> str:
    config, seeds = r["config"], r.get("seeds")
    spread = f" ± {100 * r['test_accuracy_std']:.2f} over {len(seeds)} seeds" if seeds else ""
    phases = [r[f"seconds_{name}"] for name in ("forward", "backward", "optimizer")]
    timed = r["seconds_per_step"] == r["seconds_per_step"]  # no step is where every one was counted
    ms = "one CUDA graph" if None in phases else ", ".join(f"{1e3 * t:.2f}" for t in phases) + " ms"
    rows = (
        ("test accuracy", f"{100 * r['test_accuracy']:.2f} %{spread}"),
        ("validation accuracy", f"{100 * r['val_accuracy']:.2f} % (epoch {r['best_epoch']})"),
        ("sparsity", f"{100 * r['sparsity']:.2f} %: {r['weights']:,} of {r['weights_dense']:,} weights"),
        ("training FLOPs", "not counted" if r["flops"] is None else f"{r['flops']:.3g}"),
        ("step", f"{1e3 * r['seconds_per_step']:.2f} ms" if timed else "not timed"),
        ("forward, backward, optimizer", ms if timed else "not timed"),
        ("peak memory", f"{r['peak_memory_bytes'] / 2**20:.0f} MiB, {r['run_memory_bytes'] / 2**20:.0f} by this run"),
        ("graph", f"{r['nodes']:,} nodes, {r['edges']:,} edges; " + "; ".join(r["notes"])),
    )
    return _console.table(f"{r['data']}: {config['model']}, {config['method']}", rows, box="SQUARE")


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
        return partial(command, **kwargs)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = signature.replace(parameters=parameters)
    run.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()}
    return run
