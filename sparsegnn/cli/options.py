"""Options of the commands, out of their signatures."""

from __future__ import annotations

import inspect
from functools import partial

#: of commands whose options mean something else than those of the others
OWN = {
    "study": {
        "config": "a study's TOML file (docs/study_your_own.md)",
        "out": "file of JSON lines, one a run; default study_NAME.jsonl here",
        "data": "folder of .npz graphs; default SPARSEGNN_DATA or ./data",
        "threads": "CPU threads of every run, in place of the file's",
        "only": "runs whose case has this word; may be repeated",
        "again": "make runs again that failed",
        "dry_run": "check the file and its data, and list the runs",
        "progress": "what runs, and the time left; default on a terminal",
    },
}


def with_options(command):
    """The command with typer options: names from the arguments, help from TrainConfig's docstring."""
    import typer

    from sparsegnn.experiments.config import DEFAULT, field_docs

    docs = field_docs() | {
        "data": "digits, skewed, a path to an .npz file, a name in SPARSEGNN_DATA or ./data, or a set PyG downloads",
        "model": "gcn, gat, sage, gin, sign (precomputed powers of the adjacency, then an MLP) or mlp",
        "method": f"dense, one of `sparsegnn methods`, or module:Class; {DEFAULT} if --sparsity is given, else dense",
        "set": "name=value: one of the method's own settings (sparsegnn methods NAME); may be repeated",
        "distribution": "erk, er, uniform, global where a method prunes, or JSON {layer: sparsity}",
        "name": "a method, or module:Class",
        "layers": "graph layers, or those of the MLP",
        "heads": "attention heads of hidden GAT layers",
        "epochs": "full-batch steps",
        "lr": "Adam's step size; 0.005 (GAT), 0.01 (others)",
        "dropout": "0.6 (GAT), 0.5 (others)",
        "seed": "seed of weights, dropout and mask updates",
        "seeds": "number of runs, with seeds SEED, SEED+1, ...; the means are reported",
        "split_seed": "seed of the 60/20/20 split of sets without masks",
        "device": "cpu or cuda[:index]",
        "threads": "CPU threads; default torch's",
        "seconds": "that measuring may take, about",
        "as_json": "print one JSON object",
        "quick": "fewer and smaller cases",
        "op": "an op or layer with a file bench_OP.py in benchmarks/ops or benchmarks/layers",
        "suite": "a table of bars: benchmarks/suites/SUITE.py; cpu, or h200 on a GPU",
        "check": "exit with 1 when a bar of the suite is missed",
        "only": "groups of the suite whose name contains this; nothing is written",
        "results": "files of JSON lines that a study wrote",
        "out": "where to write: a folder for figures, a file for a report; what is there is replaced",
    }
    docs |= OWN.get(command.__name__, {})
    signature = inspect.signature(command, eval_str=True)
    parameters = []
    for name, p in signature.parameters.items():
        if name in ("op", "name", "config"):
            default = typer.Argument(... if p.default is p.empty else p.default, help=docs[name])
        elif name == "results":
            default = typer.Argument(help=docs[name])
        elif name == "set":
            default = typer.Option(p.default, help=docs[name], metavar="NAME=VALUE")
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
