"""Makes README's table from the committed results: python benchmarks/readme.py [results folder]."""

import json
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
README = FOLDER.parent / "README.md"
BEGIN, END = "<!-- table:", "<!-- /table -->"
#: text, file, what the case must hold, baselines (their label in the table)
ROWS = (
    ("`SparseLinear` 512x512, 16,384 rows, 90 % sparse, forward + backward", "linear_step",
     dict(rows=16384, features=512, sparsity=0.9)),
    ("`SparseLinear` 256x256, 65,536 rows, 90 % sparse, forward + backward", "linear_step",
     dict(rows=65536, features=256, sparsity=0.9)),
    ("`SparseLinear` 512x512, 16,384 rows, 50 % sparse, forward + backward", "linear_step",
     dict(rows=16384, features=512, sparsity=0.5)),
    ("`spmm` sum, 64 features", "spmm", dict(graph="lognormal", nodes=170_000, width=64, reduce="sum")),
    ("`spmm` max, 64 features", "spmm", dict(graph="lognormal", nodes=170_000, width=64, reduce="max")),
    ("`GATConv` 128 to 8x8, forward + backward", "gat", dict(nodes=170_000, heads=8, width=8, train=True)),
    ("GCN 128-256-40, 90 % sparse, training step with Adam", "gcn_step", dict(nodes=170_000, hidden=256)),
)  # fmt: skip


def table(folder: Path) -> str:
    lines = ["| what (fp32, medians, default malloc) | sparsegnn | against |", "|---|---|---|"]
    environment = None
    for text, op, want in ROWS:
        path = folder / f"{op}.jsonl"
        if not path.exists():
            continue
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows = [r for r in rows if want.items() <= r["case"].items()]
        if not rows:
            continue
        environment = rows[0]
        against = [f"{r['contender']} {r['ms']:.3g} ms, **{r['speedup']:.1f}x**" for r in rows[1:]]
        lines.append(f"| {text} | {rows[0]['ms']:.3g} ms | {'; '.join(against)} |")
    if environment is None:
        sys.exit(f"no results in {folder}")
    e = environment
    lines += [
        "",
        f"CPU only: {e['threads']} threads, {e['isa']}, torch {e['torch']}; graph: 170,000 nodes, 2,300,000 edges, "
        f"log-normal degrees. Numbers from `benchmarks/results/{e['device']}/`, made by `sparsegnn bench`; on another "
        "machine expect other ones. No GPU number is published: the CUDA kernels have not run on a GPU yet.",
    ]
    return "\n".join(lines)


def main() -> None:
    found = sorted(p.parent for p in (FOLDER / "results").glob("*/spmm.jsonl"))
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else found[0]
    text = README.read_text()
    begin = text.index("\n", text.index(BEGIN)) + 1
    README.write_text(text[:begin] + "\n" + table(folder) + "\n\n" + text[text.index(END) :])


if __name__ == "__main__":
    main()
