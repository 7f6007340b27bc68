#!/usr/bin/env python
"""PyG's own tests: how many pass as PyG is, how many with every convolution that `sparsegnn.accelerate` covers
accelerated when it is made, and how many with the layers of `sparsegnn.nn` in place of PyG's of the same names.

    python scripts/pyg_tests.py ~/pytorch_geometric                      # a checkout of the installed version
    python scripts/pyg_tests.py ~/pytorch_geometric --only gcn sage      # files with these in their names
    python scripts/pyg_tests.py ~/pytorch_geometric --every 10           # of a test's parameters every tenth set
    python scripts/pyg_tests.py ~/pytorch_geometric --save FILE          # as JSON, too

The checkout is only read, and the installed PyG is what runs. As it is, it runs the tests that do not pass in both
other ways (--all: every one); what fails in all three is PyG's matter, or that of a package that is missing.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

COVERED = (
    "gcn sage gat gatv2 graph gin sg tag appnp gcn2 cheb arma le lg res_gated_graph rgcn hetero ssg mixhop mf "
    "cluster_gcn gated_graph simple pdn wl_conv_continuous signed eg message_passing static_graph"
).split()
OTHERS = (
    "nn/models/test_basic_gnn.py nn/models/test_linkx.py nn/models/test_lightgcn.py nn/test_to_hetero*.py "
    "nn/test_sequential.py nn/test_model_summary.py nn/test_model_hub.py nn/test_data_parallel.py "
    "nn/test_reshape*.py utils/test_trim_to_layer.py explain loader"
).split()
WAY, EVERY = "SPARSEGNN_PYG_TESTS", "SPARSEGNN_PYG_TESTS_EVERY"
WAYS = ("pyg", "accelerated", "replaced")
REASON = 160  # characters of an error that are kept


def pytest_configure(config):
    """As a plugin of pytest."""
    {"accelerated": accelerate_all, "replaced": replace_all}.get(os.environ.get(WAY), lambda: None)()


def pytest_collection_modifyitems(items):
    """Of the parameters of a test every n-th set, the first one always; of a test that is named, the one that is."""
    every, seen, kept = int(os.environ.get(EVERY, "1")), {}, []
    for item in items:
        test = item.nodeid.partition("[")[0]
        seen[test] = seen.get(test, -1) + 1
        if seen[test] % every == 0:
            kept.append(item)
    items[:] = kept


def accelerate_all():
    """Every covered convolution is accelerated when it is made."""
    import functools

    from torch_geometric.nn import MessagePassing

    from sparsegnn.nn import inner
    from sparsegnn.pyg.accelerate import is_covered
    from sparsegnn.pyg.products import pyg
    from sparsegnn.pyg.route import install

    inner.FORWARDS.add(pyg().Linear.forward)
    make = MessagePassing.__init__

    @functools.wraps(make)
    def init(self, *args, **kwargs):
        make(self, *args, **kwargs)
        if is_covered(self):
            install(self)

    MessagePassing.__init__ = init


def replace_all():
    """The names of PyG's layers are those of this library's, wherever PyG or a test takes them from."""
    import torch_geometric.nn

    import sparsegnn.nn
    from sparsegnn.nn.convolution import Convolution
    from sparsegnn.nn.pygs import theirs

    modules = [m for name, m in sys.modules.items() if name.startswith("torch_geometric")]
    for name, ours in vars(sparsegnn.nn).items():
        if not isinstance(ours, type) or not issubclass(ours, Convolution):
            continue
        pygs = theirs(ours)  # from now on it knows
        for module in modules:
            if vars(module).get(name) is pygs and module.__name__ != pygs.__module__:
                setattr(module, name, ours)
    assert torch_geometric.nn.GCNConv is sparsegnn.nn.GCNConv


def files(checkout: Path) -> list[str]:
    found = []
    for name in COVERED:
        found += [p for p in (f"test/nn/conv/test_{name}_conv.py", f"test/nn/conv/test_{name}.py")
                  if (checkout / p).is_file()]  # fmt: skip
    for pattern in OTHERS:
        found += sorted(str(p.relative_to(checkout)) for p in (checkout / "test").glob(pattern))
    return list(dict.fromkeys(found))


def run(checkout: Path, tests: list[str], way: str, every: int = 1) -> dict[str, tuple[str, str]]:
    """Test -> (passed, failed, skipped or error; what it said)."""
    here = Path(__file__).resolve().parent
    path = os.pathsep.join([str(here.parent), str(here), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {WAY: way, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "COLUMNS": "400", EVERY: str(every)}
    options = "-p pyg_tests -p no:cacheprovider -q -rA --color=no --tb=line -W ignore".split()
    command = [sys.executable, "-m", "pytest", *options, *tests]
    made = subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True)
    lines = re.findall(r"^(PASSED|FAILED|ERROR|XFAIL|XPASS) (\S+)(?: - (.*))?", made.stdout, re.M)
    found = {test: (result.lower(), said) for result, test, said in lines}
    if not found:
        raise SystemExit(f"pytest found no tests:\n{made.stdout[-2000:]}{made.stderr[-2000:]}")
    return found


def count(results: dict[str, dict]) -> dict:
    """File -> how many passed in each way, and what does not any more, with the reason."""
    rows, before = {}, results["pyg"]
    for test in sorted(set().union(*results.values())):
        name, _, case = test.partition("::")
        row = rows.setdefault(name.removeprefix("test/"), dict.fromkeys(results, 0) | {"lost": {}})
        for way, found in results.items():
            passed = found.get(test, ("",))[0] == "passed"
            row[way] += passed
            if not passed and before.get(test, ("",))[0] == "passed":
                said = found.get(test, ("", "not run: its file could not be imported"))[1]
                row["lost"].setdefault(way, {})[case] = said[:REASON]
    return rows


def table(rows: dict, ways: list[str]) -> str:
    lines = [f"| tests of PyG | {' | '.join(ways)} | not any more |", "|---" * (len(ways) + 2) + "|"]
    for name, row in rows.items():
        lost = "; ".join(f"{way}: {', '.join(cases)}" for way, cases in row["lost"].items())
        lines.append(f"| `{name}` | {' | '.join(str(row[way]) for way in ways)} | {lost} |")
    totals = " | ".join(str(sum(row[way] for row in rows.values())) for way in ways)
    return "\n".join([*lines, f"| all | {totals} | |"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--only", nargs="*", default=[""], help="files whose names contain one of these")
    parser.add_argument("--ways", nargs="*", default=list(WAYS[1:]), choices=WAYS[1:], help="beside PyG as it is")
    parser.add_argument("--every", type=int, default=1, help="of a test's parameters every n-th set")
    parser.add_argument("--all", action="store_true", help="every test with PyG as it is, too")
    parser.add_argument("--tests", default="", help="the version of the tests, where git does not know it")
    parser.add_argument("--save", type=Path, help="write JSON")
    args = parser.parse_args()
    tests = [t for t in files(args.checkout) if any(part in t for part in args.only)]
    results = {way: run(args.checkout, tests, way, args.every) for way in args.ways}
    for way, found in results.items():
        failed = [t for t, (result, _) in found.items() if result != "passed" and "::" in t]
        if failed:  # some draw other numbers at each run, and compare to the last digits
            found |= {t: r for t, r in run(args.checkout, failed, way).items() if r[0] == "passed"}
    everywhere = [t for t, r in results[args.ways[0]].items() if all(f.get(t) == r for f in results.values())]
    theirs = {t: ("passed", "") for t in everywhere if results[args.ways[0]][t][0] == "passed" and not args.all}
    left = [t for t in set().union(*results.values()) - theirs.keys()]
    files_left = {t.partition("::")[0] for t in left} if any("::" not in t for t in left) else set()
    named = sorted(t for t in left if t.partition("::")[0] not in files_left)
    found = run(args.checkout, named, WAYS[0]) if named and not args.all else {}
    if args.all or files_left:  # a file that could not be imported
        found |= run(args.checkout, tests if args.all else sorted(files_left), WAYS[0], args.every)
    results = {WAYS[0]: theirs | found} | results
    rows = count(results)
    print(table(rows, list(results)))
    if args.save:
        describe = ["git", "-C", str(args.checkout), "describe", "--tags"]
        told = args.tests or subprocess.run(describe, capture_output=True, text=True).stdout.strip()
        total = {way: sum(row[way] for row in rows.values()) for way in results}
        made = {"pyg": version("torch_geometric"), "tests": told, "every": args.every, "total": total, "files": rows}
        args.save.write_text(json.dumps(made, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
