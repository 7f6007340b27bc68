#!/usr/bin/env python
"""PyG's own tests, against accelerated convolutions: how many pass as PyG is, and how many with every convolution that
`sparsegnn.accelerate` covers accelerated when it is made.

    python scripts/pyg_tests.py ~/pytorch_geometric              # a checkout of the installed version; prints a table
    python scripts/pyg_tests.py ~/pytorch_geometric --json       # the same as JSON

The checkout is only read. A test that fails both times is PyG's matter, or that of a package that is missing.
"""

import argparse
import json
import os
import re
import subprocess
import sys
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
FLAG = "SPARSEGNN_ACCELERATE_ALL"


def pytest_configure(config):
    """As a plugin of pytest: every covered convolution is accelerated when it is made."""
    if os.environ.get(FLAG) != "1":
        return
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


def files(checkout: Path) -> list[str]:
    found = []
    for name in COVERED:
        found += [p for p in (f"test/nn/conv/test_{name}_conv.py", f"test/nn/conv/test_{name}.py")
                  if (checkout / p).is_file()]  # fmt: skip
    for pattern in OTHERS:
        found += sorted(str(p.relative_to(checkout)) for p in (checkout / "test").glob(pattern))
    return list(dict.fromkeys(found))


def run(checkout: Path, tests: list[str], accelerated: bool) -> dict[str, str]:
    """Test -> passed, failed, skipped or error."""
    here = Path(__file__).resolve().parent
    path = os.pathsep.join([str(here.parent), str(here), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {FLAG: str(int(accelerated)), "PYTHONPATH": path}
    options = "-p pyg_tests -p no:cacheprovider -q -rA --color=no --tb=line -W ignore".split()
    command = [sys.executable, "-m", "pytest", *options, *tests]
    made = subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True)
    lines = re.findall(r"^(PASSED|FAILED|ERROR|XFAIL|XPASS) (\S+)", made.stdout, re.M)
    found = {test: result.lower() for result, test in lines}
    if not found:
        raise SystemExit(f"pytest found no tests:\n{made.stdout[-2000:]}{made.stderr[-2000:]}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--only", default="", help="files whose name contains this")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    tests = [t for t in files(args.checkout) if args.only in t]
    before, after = (run(args.checkout, tests, accelerated) for accelerated in (False, True))
    lost = [t for t, result in before.items() if result == "passed" and after.get(t) != "passed"]
    for test in lost:  # they draw other numbers at each run, and compare to the last digits
        after |= {t: r for t, r in run(args.checkout, [test], True).items() if t == test}
    rows = {}
    for test in sorted(before | after):
        row = rows.setdefault(test.partition("::")[0].removeprefix("test/"), dict(before=0, after=0, lost=[]))
        passed = [results.get(test) == "passed" for results in (before, after)]
        row["before"], row["after"] = row["before"] + passed[0], row["after"] + passed[1]
        if passed[0] and not passed[1]:
            row["lost"].append(test.partition("::")[2])
    total = {k: sum(row[k] for row in rows.values()) for k in ("before", "after")}
    if args.json:
        print(json.dumps({"files": rows, "total": total}, indent=1))
        return 0
    print("| tests of PyG | pass | accelerated | not any more |\n|---|---|---|---|")
    for name, row in rows.items():
        print(f"| `{name}` | {row['before']} | {row['after']} | {', '.join(row['lost'])} |")
    print(f"| all | {total['before']} | {total['after']} | {len(lost)} were run again |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
