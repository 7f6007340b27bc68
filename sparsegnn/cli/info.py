"""`sparsegnn info`: what was built, what runs, and why not."""

from __future__ import annotations

from sparsegnn import _console


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
