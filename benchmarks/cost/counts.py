"""Instructions of the kernels' main loops, by the table ``loops`` of ``csrc/cuda/budget.json``.

An entry names a kernel as C++ writes it, and how its main loop is found and counted:

    header, kernel   where it is defined, and what is instantiated
    mark, each       what the loop is there for (``sass.marks``), and how many of them are one unit
    without          what it has not, where another loop has more marks
    past             what is done around the loop, where ``most`` is not to hold what seldom happens
    unit             what is counted: an edge and 512 bytes, four nonzeros and 64 samples, ...
    longest          true: arguments that may be absent are there; else the shortest way with all marks is counted
    facts            what machine code does not say: ``trips``, loads of a step that wait for one another; ``conflict``,
                     lanes that meet in a bank; ``lines`` of memory that one store of a warp touches, and clocks that
                     it was ``staged`` in shared memory before; ``uniform``, clocks of a load of W, whose lanes share
                     few addresses (four: between one and four); ``held``, share of the loads from shared memory under
                     a predicate that are made

and holds what was counted: ``instructions`` of a unit, which may not rise; ``of`` each class, ``loads`` from global
memory (LDG) and ``cycles`` of an SM's load-store unit; ``unroll``, units of one iteration; ``tail``, instructions of
a unit in what is left over, null where there is no such loop; ``around`` the loop, and at ``most``; ``registers`` and
static ``shared``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, fields

from cost import cubin, sass

BUDGET = cubin.CSRC / "cuda" / "budget.json"
SPEC = ("header", "kernel", "mark", "without", "past", "each", "unit", "longest", "facts")
RESERVED = 1024  # bytes of shared memory that CUDA keeps of a block; cuobjdump counts them where there is more
WIDE = {"128": 4, "64": 2}  # words of a lane; an SM's load-store unit moves 32 a clock


@dataclass(frozen=True)
class Count:
    """Of one loop; numbers are for one unit, but ``around`` (for one warp that comes by), registers and shared."""

    instructions: float
    of: dict[str, float]
    loads: float
    cycles: float
    unroll: float
    tail: float | None
    around: int
    most: int
    registers: int
    shared: int
    spilled: int = 0  # bytes of a thread's stack
    facts: dict[str, float] = field(default_factory=dict)

    @property
    def step(self) -> float:
        """Instructions of one iteration."""
        return self.instructions * self.unroll


def table() -> dict[str, dict]:
    return json.loads(BUDGET.read_text())["loops"]


def width(i: sass.Instruction) -> int:
    return next((words for suffix, words in WIDE.items() if suffix in i.opcode.split(".")), 1)


def cycles(way: list[sass.Instruction], facts: dict[str, float]) -> float:
    """Of an SM's load-store unit: 32 words a clock, but for what ``facts`` say of loads."""
    total = 0.0
    for i in way:
        if i.kind != "lsu":
            continue
        if i.name == "LDG" and facts.get("uniform"):
            total += min(facts["uniform"], width(i))
        elif i.name in ("LDS", "STS"):
            total += width(i) * facts.get("conflict", 1) * (facts.get("held", 1) if i.predicate else 1)
        else:
            total += width(i)
    return total


def count(kernel: sass.Kernel, entry: dict) -> Count:
    """Counts the main loop of a kernel; ValueError where there is none with a mark."""
    longest, each, facts = bool(entry.get("longest")), entry["each"], entry.get("facts", {})
    marked = sass.marks(entry["mark"])
    ways = kernel.ways(marked, longest, sass.marks(entry.get("without", "NONE")))
    if not ways:
        raise ValueError(f"{entry['kernel']}: no loop has {entry['mark']}")
    loop, way = ways[0]
    units = sum(map(marked, way)) / each
    left = [w for _, w in ways if sum(map(marked, w)) == each] if units > 1 else []
    kinds = sass.counts(way)
    return Count(
        instructions=round(len(way) / units, 3),
        of={kind: round(n / units, 3) for kind, n in kinds.items()},
        loads=round(sum(i.name == "LDG" for i in way) / units, 3),
        cycles=round(cycles(way, facts) / units, 3),
        unroll=units,
        tail=len(left[0]) if left else None,
        around=kernel.around(loop),
        most=kernel.most_around(loop, sass.marks(entry["past"]) if "past" in entry else None),
        registers=kernel.registers,
        shared=max(0, kernel.shared - RESERVED),
        spilled=kernel.spilled,
        facts=facts,
    )


def counted(names: Iterable[str] | None = None) -> dict[str, Count]:
    """Of the machine code that nvcc makes here of the sources as they are."""
    entries = table()
    wanted = list(entries if names is None else names)
    headers: dict[str, list[str]] = {}
    for name in wanted:
        headers.setdefault(entries[name]["header"], []).append(entries[name]["kernel"])
    kernels = {header: cubin.compiled(header, list(dict.fromkeys(found))) for header, found in headers.items()}
    return {n: count(kernels[entries[n]["header"]][entries[n]["kernel"]], entries[n]) for n in wanted}


class Counts(dict):
    """As ``counted``, but a header is compiled when one of its loops is asked for."""

    def __missing__(self, name: str) -> Count:
        entries = table()
        if name not in entries:
            raise KeyError(f"{name}: budget.json has no such loop")
        self.update(counted([n for n, e in entries.items() if e["header"] == entries[name]["header"]]))
        return self[name]


def budgeted(names: Iterable[str] | None = None) -> dict[str, Count]:
    """What ``budget.json`` holds: no compiler is needed."""
    entries, known = table(), {f.name for f in fields(Count)}
    wanted = list(entries if names is None else names)
    return {n: Count(**{"facts": {}} | {k: v for k, v in entries[n].items() if k in known}) for n in wanted}


def write(found: dict[str, Count]) -> None:
    """Puts the counts into ``budget.json``."""
    content = json.loads(BUDGET.read_text())
    for name, c in found.items():
        spec = {k: v for k, v in content["loops"][name].items() if k in SPEC}
        content["loops"][name] = spec | {f.name: getattr(c, f.name) for f in fields(Count) if f.name != "facts"}
    BUDGET.write_text(dumps(content))


def dumps(content: dict) -> str:
    """JSON; of every loop two lines, how it is found and what was counted."""
    loops = []
    for name, entry in content["loops"].items():
        parts = ({k: v for k, v in entry.items() if (k in SPEC) == spec} for spec in (True, False))
        lines = ",\n".join("      " + json.dumps(part)[1:-1] for part in parts if part)
        loops.append(f"    {json.dumps(name)}: {{\n{lines}\n    }}")
    head = json.dumps({k: v for k, v in content.items() if k != "loops"}, indent=2)[:-2]
    return head + ',\n  "loops": {\n' + ",\n".join(loops) + "\n  }\n}\n"
