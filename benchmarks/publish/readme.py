"""Makes README's tables, and docs/cpu-benchmarks.md, from committed results: ``python benchmarks/publish/readme.py``.

Reads every ``suite_cpu.jsonl``, which ``sparsegnn bench --suite cpu`` writes: README has the headlines of all machines,
the page all their rows; and every ``suite_h200.jsonl``, which ``scripts/gpu_check.sh`` writes on a GPU.
"""

import json
import sys
from pathlib import Path

if not __package__:  # run by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import FOLDER  # noqa: E402
from harness.pages import between  # noqa: E402

README = FOLDER.parent / "README.md"
FIGURE = FOLDER / "figures" / "speedup.svg"
PAGE = FOLDER.parent / "docs" / "cpu-benchmarks.md"
#: the rows of README's table: one of each kind, those that miss their bars among them
HEADLINES = (
    "SparseLinear, autograd 16384,512,512, 90 %",
    "SparseLinear, autograd 65536,256,256, 90 %: SparseProp",
    "SparseLinear, autograd 65536,256,256, 90 %: sparselab",
    "weights 8192,1024,1024, 50 % sparse",
    "weights 4096,256,256, 98 % sparse",
    "spmm sum, 64 features",
    "GATConv 128 to 8x8, training step",
    "GAT training step, peak memory above inputs",
    "GCN 128-256-40, 90 %, step: PyG torch_sparse",
    "GCN 128-256-40, 90 %, step, act='relu': dense weights",
    "sparse features, Cora, 1433 to 16: torch CSR",
)
#: what their folders do not say, in the order of the columns; the bars were set on the first
PROCESSORS = {
    "cpu-amd-epyc-avx512-2t": "AMD EPYC (Zen 4)",
    "cpu-intel-xeon-processor-avx512-2t": "Intel Xeon (Emerald Rapids)",
    "cpu-amd-epyc-avx2-2t": "AMD EPYC (Zen 3)",
}
BEGIN, END = "<!-- table:", "<!-- /table -->"
GPU_BEGIN, GPU_END = "<!-- gpu table:", "<!-- /gpu table -->"
GPU_COMMAND = "scripts/gpu_check.sh"
GPU_HEAD = "| what | degree | sparsegnn | best other | ratio | ship / target | of floor | error, ours / other |"
HEAD = "| what | sparsegnn | best other | default malloc | kept memory | bars | of roofline | error, ours / other |"


def headlines(machines: list[list[dict]]) -> str:
    """The rows of all machines that README shows, side by side, with default malloc."""
    names = [processor(rows[0]) for rows in machines]
    lines = [f"| what | bar | {' | '.join(names)} |", "|---" * (2 + len(names)) + "|"]
    for text in HEADLINES:
        found = [next((r for r in rows if r["suite_row"] == text and r["regime"] == "default"), None)
                 for rows in machines]  # fmt: skip
        if not any(found):
            continue  # of a contender that has not been measured yet
        bar = next((f"{r['bar']:g}x" for r in found if r and r["bar"] is not None), "")
        lines.append(f"| {text} | {bar} | {' | '.join(map(headline, found))} |")
    judged = [[row["passed"] for row in rows if row["passed"] is not None] for rows in machines]
    of = [
        f"{name}: {sum(passed)} of {len(passed)} bars reached; {rows[0]['limits']['flops'] / 1e9:.0f} GFLOP/s and "
        f"{rows[0]['limits']['bandwidth'] / 1e9:.0f} GB/s measured; `benchmarks/results/{rows[0]['device']}`"
        for name, passed, rows in zip(names, judged, machines, strict=True)
    ]
    lines += [
        "",
        "How many times faster sparsegnn is than the best other contender, and the times of both (or memory): fp32, 2 "
        "threads, default malloc, fresh outputs, medians of interleaved rounds in one process; graphs of 170,000 nodes "
        "and 2,300,000 edges, log-normal degrees. In bold what reaches the bar, in italics what misses it; the bars "
        f"were set on an {next(iter(PROCESSORS.values()))}. {'. '.join(of)}. Made by `sparsegnn bench --suite cpu`; on "
        "another machine expect other numbers.",
    ]
    if FIGURE.is_file():
        lines += ["", f"![Speed of sparse weights against sparsity]({FIGURE.relative_to(README.parent)})"]
    return "\n".join(lines)


def column(device: str) -> tuple[int, str]:
    return [*PROCESSORS, device].index(device), device


def processor(row: dict) -> str:
    return PROCESSORS.get(row["device"], row["device"])


def size_of(row: dict) -> str:
    """The unit of what each contender took."""
    return "MB" if row["kind"] == "memory" else "ms"


def headline(row: dict | None) -> str:
    if row is None or row["value"] is None:
        return ""
    ours, theirs = (f"{v:,.0f}" if v >= 1000 else f"{v:.3g}" for v in (row["ours"], row["theirs"]))
    return f"{cell(row)} {row['baseline']}: {ours} against {theirs} {size_of(row)}"


def table(rows: list[dict]) -> str:
    """One line per row of the suite, the regimes side by side; what was not measured says why."""
    found: dict[str, dict[str, dict]] = {}
    for row in rows:
        found.setdefault(row["suite_row"], {})[row["regime"]] = row
    lines = [HEAD, "|---|---|---|---|---|---|---|---|"]
    lines += [line(text, regimes) for text, regimes in found.items()]
    judged = [row for row in rows if row["passed"] is not None]
    passed, first, limit = sum(row["passed"] for row in judged), rows[0], rows[0]["limits"]
    lines += [
        "",
        f"fp32, medians of interleaved rounds, {first['threads']} threads, {first['isa']}, torch {first['torch']}; "
        f"graphs of 170,000 nodes and 2,300,000 edges, log-normal degrees unless R-MAT is named. Each cell is how many "
        f"times faster sparsegnn is than the best other contender, in bold where it reaches its bar ({passed} of "
        f"{len(judged)} do), in italics where it misses it. *Kept memory*: malloc keeps freed memory, for both sides. "
        f"Roofline: {limit['flops'] / 1e9:.0f} GFLOP/s and {limit['bandwidth'] / 1e9:.0f} GB/s, measured. Errors are "
        f"relative, against fp64. From `benchmarks/results/{first['device']}/suite_cpu.jsonl`, made by `sparsegnn "
        "bench --suite cpu`; on another machine expect other numbers.",
    ]
    return "\n".join(lines)


def line(text: str, regimes: dict[str, dict]) -> str:
    row = regimes.get("default") or next(iter(regimes.values()))
    cells = [cell(regimes.get(name)) for name in ("default", "kept")]
    if row["value"] is None:
        reason = row.get("note") or f"not installed: {', '.join(row['missing'])}"
        return f"| {text} | | {reason} | {cells[0]} | {cells[1]} | | | |"
    size = size_of(row)
    text += f" (ran {row['kernel']})" if (row.get("kernel") or "").startswith("dense") else ""
    other = "" if row["baseline"] is None else f"{row['baseline']} {row['theirs']:.3g} {size}"
    bars = [f"{r['bar']:g}" for name in ("default", "kept") if (r := regimes.get(name)) and r["bar"] is not None]
    roofline = "" if row["roofline"] is None else f"{100 * row['roofline']:.0f} %"
    errors = " / ".join("-" if e is None else f"{e:.0e}" for e in (row["error"], row["error_baseline"]))
    ending = f"| {roofline} | {'' if errors == '- / -' else errors} |"
    return f"| {text} | {row['ours']:.3g} {size} | {other} | {cells[0]} | {cells[1]} | {'; '.join(bars)} {ending}"


def cell(row: dict | None) -> str:
    if row is None or row["value"] is None:
        return ""
    value = f"{row['value']:.3g}{row['unit'] if row['unit'] == 'x' else ' ' + row['unit']}"
    return value if row["passed"] is None else f"**{value}**" if row["passed"] else f"*{value}*"


def page(machines: list[list[dict]]) -> str:
    """All rows of all machines."""
    command = "python benchmarks/publish/readme.py"
    text = f"# CPU benchmarks\n\nMade by `{command}` from `benchmarks/results/`; do not edit by hand.\n"
    return text + "".join(f"\n## {rows[0]['device']}\n\n{table(rows)}\n" for rows in machines)


def gpu_table(results: list[list[dict]]) -> str:
    """A table for every GPU of which there are results: rows with a bar; else how to get one."""
    if not results:
        return (
            "No GPU number is published: the CUDA kernels have not run on a GPU yet. On a machine with one (H100 or "
            f"H200, PyTorch with CUDA, nvcc), `{GPU_COMMAND}` builds them, runs their tests and compute-sanitizer, "
            "measures everything, and writes the results that this table is made from."
        )
    return "\n\n".join(map(_gpu_table, results))


def _gpu_table(rows: list[dict]) -> str:
    shown = [row for row in rows if row["bar"] is not None and not row["group"].startswith("dispatch")]
    judged = [row for row in shown if row["passed"] is not None]
    passed, first = sum(row["passed"] for row in judged), next(row for row in rows if "limits" in row)
    limit, cells = first["limits"], [row for row in rows if row["group"].startswith("dispatch")]
    l2 = f"{limit['l2'] / 1e12:.1f} TB/s of random rows from L2, " if limit.get("l2") else ""
    return "\n".join([
        GPU_HEAD,
        "|---|---|---|---|---|---|---|---|",
        *map(gpu_line, shown),
        "",
        f"{first['device']}, torch {first['torch']}; device time, medians of interleaved rounds (10th to 90th "
        f"percentile in brackets), inputs past the L2, outputs checked over memory full of NaN. In bold what reaches "
        f"the bar to ship ({passed} of {len(judged)} do). Floors: {limit['bandwidth'] / 1e12:.2f} TB/s copied, {l2}"
        f"{limit['flops'] / 1e12:.0f}, {limit['tf32'] / 1e12:.0f} and {limit['bf16'] / 1e12:.0f} TFLOP/s of products "
        f"in fp32, TF32 and bf16, measured in the same run. Errors are relative, against fp64. Graphs are stand-ins of "
        f"the size and skew of those they are named after. All {len(rows)} rows, {len(cells)} of them dispatch: "
        f"`benchmarks/results/{first['device']}/suite_h200.jsonl`, made by `{GPU_COMMAND}`.",
    ])  # fmt: skip


def gpu_line(row: dict) -> str:
    degree = row["case"].get("degree", "")
    if row["value"] is None:
        return f"| {row['suite_row']} | {degree} | | {row['note'][:120].replace('|', '/')} | | | | |"
    size = size_of(row)
    spread = (row.get("percentiles") or {}).get(row["contender"])
    ours = "" if row["ours"] is None else f"{row['ours']:.3g} {size}"
    ours += f" ({spread[0]:.3g}-{spread[1]:.3g})" if spread and ours and size == "ms" else ""
    text = row["suite_row"] + (f" ({row['contender']})" if row.get("several") else "")
    other = "" if row["baseline"] is None else f"{row['baseline']} {row['theirs']:.3g} {size}"
    bars = f"{row['bar']:g}" + ("" if row["stretch"] is None else f" / {row['stretch']:g}")
    floor = "" if row["roofline"] is None else f"{100 * row['roofline']:.0f} %"
    errors = " / ".join("-" if e is None else f"{e:.0e}" for e in (row["error"], row["error_baseline"]))
    errors = "" if errors == "- / -" else errors
    return f"| {text} | {degree} | {ours} | {other} | {cell(row)} | {bars} | {floor} | {errors} |"


def main() -> None:
    found = sorted((FOLDER / "results").glob("cpu-*/suite_cpu.jsonl"), key=lambda path: column(path.parent.name))
    if not found:
        sys.exit("no results: run `sparsegnn bench --suite cpu` first")
    machines = [[json.loads(line) for line in path.read_text().splitlines()] for path in found]
    text = between(README.read_text(), BEGIN, END, headlines(machines))
    PAGE.write_text(page(machines))
    if GPU_BEGIN in text:
        files = sorted((FOLDER / "results").glob("*/suite_h200.jsonl"))
        gpus = [[json.loads(line) for line in path.read_text().splitlines()] for path in files]
        text = between(text, GPU_BEGIN, GPU_END, gpu_table(gpus))
    README.write_text(text)


if __name__ == "__main__":
    main()
