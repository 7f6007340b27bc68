"""Rows as tables on a terminal: those of an op, and those of a suite."""

from __future__ import annotations

import sys

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table


def show_cases(rows: list[dict]) -> None:
    """The rows of an op: its cases, contender by contender; what all cases share goes into the title."""
    shared = {k: v for k, v in rows[0]["case"].items() if all(row["case"].get(k) == v for row in rows)}
    title = ", ".join(f"{k} {v:,}" if isinstance(v, int) else f"{k} {v}" for k, v in shared.items()) or "all cases"
    table = Table(title=f"{rows[0]['op']}: {title}; medians, {torch.get_num_threads()} threads", title_justify="left")
    table.add_column("case")
    table.add_column("contender")
    for name in ("ms", "ours is", "GFLOP/s", "of roofline"):
        table.add_column(name, justify="right")
    for row, after in zip(rows, [*rows[1:], None], strict=True):
        case = ", ".join(f"{k} {v}" for k, v in row["case"].items() if k not in shared)
        ours = row["contender"] == "sparsegnn"
        table.add_row(
            (case or "all") if ours else "",
            row["contender"],
            f"{row['ms']:.3g}",
            "" if ours else f"{row['speedup']:.2f}x",
            f"{row['gflops']:.1f}" if row["gflops"] else "",
            f"{100 * row['roofline']:.0f} %",
            end_section=after is not None and after["contender"] == "sparsegnn",
        )
    Console(width=None if sys.stdout.isatty() else 110).print(table)


def show_suite(name: str, rows: list[dict], seconds: float, below: list[dict]) -> None:
    """The table: a line per row, the regimes side by side."""
    first = next((row for row in rows if "limits" in row), None)
    if first is None:
        print("\n".join(f"{row['suite_row']}: {row['note']}" for row in rows))
        return
    where = "" if first["regime"] == "gpu" else f"{first['threads']} threads, {first['isa']}, "
    title = f"suite {name}: {first['device']}, {where}torch {first['torch']}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("what", no_wrap=True)
    table.add_column("ours", justify="right", no_wrap=True, min_width=9)
    table.add_column("best other", no_wrap=True)
    regimes = list(dict.fromkeys(row["regime"] for row in rows))
    for regime in regimes:
        text = "ratio, bar / target" if regime == "gpu" else f"{regime} malloc: ratio, bar / stretch"
        table.add_column(text, no_wrap=True)
    table.add_column("roofline", justify="right")
    table.add_column("fp64 error", no_wrap=True)
    lines: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        lines.setdefault((row["group"], row["suite_row"]), {})[row["regime"]] = row
    last = None
    for (group, text), by_regime in lines.items():
        if last not in (None, group.split()[0]):
            table.add_section()
        last, row = group.split()[0], by_regime.get("default") or next(iter(by_regime.values()))
        cells = [verdict(by_regime.get(regime)) for regime in regimes]
        if row["value"] is None:
            reason = (row.get("note") or f"not installed: {', '.join(row['missing'])}")[:70]
            table.add_row(escape(text), "", f"[yellow]{escape(reason)}[/]", *cells, "", "")
            continue
        size = "MB" if row["kind"] == "memory" else "ms"
        other = "" if row["baseline"] is None else f"{row['baseline']} {row['theirs']:.3g} {size}"
        text += f" ({row['contender']})" if row.get("several") else ""
        text += f" (ran {row['kernel']})" if (row.get("kernel") or "").startswith("dense") else ""
        roofline = "" if row["roofline"] is None else f"{100 * row['roofline']:.0f} %"
        errors = " / ".join("-" if e is None else f"{e:.1e}" for e in (row["error"], row["error_baseline"]))
        ours = "" if row["ours"] is None else f"{row['ours']:.3g} {size}"
        table.add_row(escape(text), ours, other, *cells, roofline, "" if errors == "- / -" else errors)
    (Console() if sys.stdout.isatty() else Console(width=240)).print(table)
    judged = [r for r in rows if r["passed"] is not None]
    limit = first["limits"]
    more = ", ".join(f"{limit[n] / 1e12:.0f} TFLOP/s {n}" for n in ("tf32", "bf16") if n in limit)
    more += f", {limit['l2'] / 1e9:.0f} GB/s gathered from L2" if "l2" in limit else ""
    print(f"{len(judged) - len(below)} of {len(judged)} bars reached in {seconds:.0f} s. Limits ({limit['by']}): "
          f"{limit['flops'] / 1e9:.0f} GFLOP/s fp32, {limit['bandwidth'] / 1e9:.0f} GB/s copied"
          + (f", {more}." if more else "."))  # fmt: skip


def verdict(row: dict | None) -> str:
    """The value of a row beside its bar."""
    if row is None or row["value"] is None:
        return "[red]failed[/]" if row is not None and row["passed"] is False else ""
    text = f"{row['value']:.2f}x" if row["unit"] == "x" else f"{row['value']:.3g} {row['unit']}"
    if row["passed"] is None:
        return text
    bar = f"{row['bar']:g}" + (f" / {row['stretch']:g}" if row["stretch"] is not None else "")
    return f"[green]{text:>6}[/]  {bar} pass" if row["passed"] else f"[red]{text:>6}[/]  {bar} [red]MISS[/]"
