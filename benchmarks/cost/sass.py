"""Machine code of kernels, as ``cuobjdump -sass`` prints it: loops, and what one way through a loop issues, by class.

A loop is found by what it does, never by its place: of the loops that have no other with a *mark* inside, the one with
the most marks on a way through it. A mark is an instruction that the loop is there for: a 128-bit load that gathers a
row, an FFMA, an HMMA. The unrolled body wins over what is left for the end, and branches that a way does not take (an
argument that is absent) do not count.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

CLASSES = ("fma", "mma", "lsu", "xu", "alu", "control")
_CLASS = {
    "fma": "FFMA FADD FMUL DFMA DADD DMUL HFMA2 HADD2 HMUL2 FFMA2 FADD2 FMUL2",
    "mma": "HMMA IMMA DMMA HGMMA BGMMA QGMMA",
    "lsu": "LD LDG LDS LDL LDSM ST STG STS STL STSM ATOM ATOMG ATOMS RED SHFL MATCH LDGSTS UBLKCP REDUX",
    "xu": "MUFU I2F F2I F2F FRND POPC FLO BREV I2FP",  # 16 lanes a clock of an SM
    "control": "BRA BRX JMP JMX CALL RET EXIT BSSY BSYNC BREAK BMOV WARPSYNC BAR NOP YIELD NANOSLEEP DEPBAR SYNCS",
}
_KIND = {name: kind for kind, names in _CLASS.items() for name in names.split()}

_FUNCTION = re.compile(r"^\s*Function : (\S+)", re.M)
_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)\s*([^;]*);", re.M)
_ADDRESS = re.compile(r"\b0x([0-9a-f]+)\s*$")
_CONDITION = re.compile(r"(?:^|,\s*)!?U?P\d\b")


@dataclass(frozen=True)
class Instruction:
    at: int  # bytes from the start of the function
    predicate: str  # "" where it always takes effect
    opcode: str  # with its modifiers: LDG.E.128.CONSTANT
    operands: str

    @property
    def name(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def kind(self) -> str:
        return _KIND.get(self.name, "alu")

    @property
    def target(self) -> int | None:
        """Where a branch goes to. Of one that is taken only where lanes have parted (BRA.DIV) none: its block is one
        beside the loop that does what the warp could not do as one."""
        if self.name != "BRA" or ".DIV" in self.opcode or ".CONV" in self.opcode:
            return None
        found = _ADDRESS.search(self.operands)
        return int(found[1], 16) if found else None

    @property
    def falls_through(self) -> bool:
        """Whether the next instruction may follow. A call comes back."""
        if self.name not in ("BRA", "EXIT", "RET", "BRX", "JMX", "JMP"):
            return True
        conditional = self.predicate not in ("", "PT", "UPT") or _CONDITION.search(self.operands)
        return bool(conditional) or ".DIV" in self.opcode or ".CONV" in self.opcode


def counts(instructions: list[Instruction]) -> dict[str, int]:
    """Instructions by class; every class of ``CLASSES`` is there."""
    found = Counter(i.kind for i in instructions)
    return {kind: found[kind] for kind in CLASSES}


@dataclass(frozen=True)
class Loop:
    head: int  # addresses of blocks
    blocks: frozenset[int]


def _plus(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return a[0] + b[0], a[1] + b[1]


@dataclass
class Kernel:
    """A function of a cubin. ``name`` is mangled; ``registers`` and ``shared`` (static bytes) are 0 where not known."""

    name: str
    instructions: list[Instruction]
    registers: int = 0
    shared: int = 0
    spilled: int = field(default=0)

    # ---- control flow

    @cached_property
    def blocks(self) -> dict[int, list[Instruction]]:
        """Instructions without a branch between, by the address of the first."""
        starts = {i.target for i in self.instructions} - {None}
        found: dict[int, list[Instruction]] = {}
        block: list[Instruction] = []
        for i in self.instructions:
            if block and (i.at in starts or block[-1].target is not None or not block[-1].falls_through):
                block = []
            if not block:
                found[i.at] = block
            block.append(i)
        return found

    @cached_property
    def successors(self) -> dict[int, list[int]]:
        order = list(self.blocks)
        follows = dict(zip(order, [*order[1:], None], strict=True))
        found = {}
        for at, block in self.blocks.items():
            last = block[-1]
            next_ = [follows[at]] if last.falls_through else []
            found[at] = [b for b in dict.fromkeys([*next_, last.target]) if b in self.blocks]
        return found

    @cached_property
    def order(self) -> dict[int, int]:
        """The place of every block in reverse postorder: before those it leads to, but for loops. Others are dead."""
        entry = next(iter(self.blocks))
        seen, done, stack = {entry}, [], [(entry, iter(self.successors[entry]))]
        while stack:
            at, rest = stack[-1]
            for b in rest:
                if b not in seen:
                    seen.add(b)
                    stack.append((b, iter(self.successors[b])))
                    break
            else:
                done.append(at)
                stack.pop()
        return {at: i for i, at in enumerate(reversed(done))}

    @cached_property
    def dominator(self) -> dict[int, int]:
        """Of every block the last that every way from the entry to it passes."""
        order = self.order
        before: dict[int, list[int]] = {at: [] for at in order}
        for at in order:
            for b in self.successors[at]:
                before[b].append(at)
        entry, *others = sorted(order, key=order.get)
        found = {entry: entry}

        def common(a: int, b: int) -> int:
            while a != b:
                while order[a] > order[b]:
                    a = found[a]
                while order[b] > order[a]:
                    b = found[b]
            return a

        changed = True
        while changed:
            changed = False
            for at in others:
                known = [b for b in before[at] if b in found]
                new = known[0]
                for b in known[1:]:
                    new = common(new, b)
                changed |= found.get(at) != new
                found[at] = new
        return found

    def dominates(self, a: int, b: int) -> bool:
        while self.order[b] > self.order[a]:
            b = self.dominator[b]
        return a == b

    @cached_property
    def loops(self) -> list[Loop]:
        """Natural loops; those that share a head are one."""
        before: dict[int, list[int]] = {}
        for at in self.order:
            for b in self.successors[at]:
                before.setdefault(b, []).append(at)
        found = []
        for head in self.order:
            latches = [at for at in before.get(head, []) if self.dominates(head, at)]
            body, todo = {head}, list(latches)
            while todo:
                at = todo.pop()
                if at not in body:
                    body.add(at)
                    todo.extend(before[at])
            if latches:
                found.append(Loop(head, frozenset(body)))
        return found

    # ---- what is issued

    def way(self, loop: Loop, marked: Callable[[Instruction], bool], longest: bool = False) -> list[Instruction]:
        """The way through the loop with the most marks; of those the shortest, or the longest. Inner loops once."""
        order, sign = self.order, 1 if longest else -1
        best: dict[int, tuple[tuple[int, int], int | None]] = {}
        ends = []
        for at in sorted(loop.blocks, key=order.get):
            block = self.blocks[at]
            own = (sum(map(marked, block)), sign * len(block))
            if at == loop.head:
                best[at] = (own, None)
            elif at in best:
                (marks, length), previous = best[at]
                best[at] = ((marks + own[0], length + own[1]), previous)
            else:
                continue
            for b in self.successors[at]:
                if b == loop.head:
                    ends.append(at)
                elif b in loop.blocks and order[b] > order[at] and (b not in best or best[at][0] > best[b][0]):
                    best[b] = (best[at][0], at)
        at = max(ends, key=lambda b: best[b][0])
        path = []
        while at is not None:
            path.append(at)
            at = best[at][1]
        return [i for at in reversed(path) for i in self.blocks[at]]

    def ways(self, marked: Callable[[Instruction], bool], longest: bool = False,
             barred: Callable[[Instruction], bool] = lambda i: False,
             ) -> list[tuple[Loop, list[Instruction]]]:  # fmt: skip
        """The ways through the loops that have a mark, nothing barred, and no other loop with a mark inside; most marks
        first, and of as many the shortest first, or the longest."""
        at_mark, at_barred = ({at for at, block in self.blocks.items() if any(map(is_one, block))}
                              for is_one in (marked, barred))  # fmt: skip
        marking = [loop for loop in self.loops if loop.blocks & at_mark and not loop.blocks & at_barred]
        inner = [a for a in marking if not any(b.blocks < a.blocks for b in marking)]
        found = [(loop, self.way(loop, marked, longest)) for loop in inner]
        sign = -1 if longest else 1
        return sorted(found, key=lambda f: (-sum(map(marked, f[1])), sign * len(f[1]), f[0].head))

    def around(self, loop: Loop) -> int:
        """The least number of instructions before the loop and behind it, other loops passed once."""
        length = {at: len(block) for at, block in self.blocks.items()}
        entry = next(iter(self.blocks))
        to = self._least({entry: 0}, length)
        behind = self._least({b: 0 for at in loop.blocks for b in self.successors[at] if b not in loop.blocks}, length)
        leaves = [n + length[at] for at, n in behind.items() if self.blocks[at][-1].name in ("EXIT", "RET")]
        return to[loop.head] + min(leaves, default=0)

    def _least(self, starts: dict[int, int], length: dict[int, int]) -> dict[int, int]:
        found, heap = {}, [(n, at) for at, n in starts.items()]
        heapq.heapify(heap)
        while heap:
            n, at = heapq.heappop(heap)
            if at in found:
                continue
            found[at] = n
            for b in self.successors[at]:
                heapq.heappush(heap, (n + length[at], b))
        return found

    def most_around(self, loop: Loop, marked: Callable[[Instruction], bool] | None = None) -> int:
        """The most instructions on a way before the loop and behind it, other loops passed once; of ways with the most
        marks, if there are any, the fewest."""
        sign = -1 if marked else 1
        own = {at: (sum(map(marked, b)) if marked else 0, sign * len(b)) for at, b in self.blocks.items()}
        entry = next(iter(self.blocks))
        before = self._most({entry}, own)[loop.head]
        behind = self._most({b for at in loop.blocks for b in self.successors[at] if b not in loop.blocks}, own)
        leaves = [_plus(n, own[at]) for at, n in behind.items() if self.blocks[at][-1].name in ("EXIT", "RET")]
        return sign * (before[1] + max(leaves, default=(0, 0))[1])

    def _most(self, starts: set[int], own: dict[int, tuple[int, int]]) -> dict[int, tuple[int, int]]:
        """The most of what blocks have on a way from one of the starts, which only goes forward, to every block."""
        found = dict.fromkeys(starts, (0, 0))
        for at in sorted(self.order, key=self.order.get):
            for b in self.successors[at] if at in found else ():
                if self.order[b] > self.order[at]:
                    sums = _plus(found[at], own[at])
                    found[b] = max(found.get(b, sums), sums)
        return found


def read(text: str) -> Iterator[Kernel]:
    """The kernels of what ``cuobjdump -sass`` printed."""
    parts = _FUNCTION.split(text)
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        found = [Instruction(int(at, 16), p, op, rest.strip()) for at, p, op, rest in _LINE.findall(body)]
        if not found:
            raise ValueError(f"no instruction of {name} was understood; is this the output of cuobjdump -sass?")
        yield Kernel(name, found)


def resources(text: str) -> dict[str, dict[str, int]]:
    """Registers, stack and static shared bytes by kernel, of what ``cuobjdump -res-usage`` printed."""
    found = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", text)
    return {name: dict(registers=int(r), spilled=int(s), shared=int(m)) for name, r, s, m in found}


def marks(pattern: str) -> Callable[[Instruction], bool]:
    """``"LDG.E.128"`` marks instructions with at least these modifiers, ``"FFMA|FADD"`` either, ``"LDG !EF"`` those
    without EF."""
    choices = []
    for choice in pattern.split("|"):
        wanted, *barred = choice.replace("!", " !").split()
        choices.append((set(wanted.split(".")), wanted.split(".")[0], {b.lstrip("!") for b in barred}))

    def marked(i: Instruction) -> bool:
        has = set(i.opcode.split("."))
        return any(i.name == name and need <= has and not barred & has for need, name, barred in choices)

    return marked
