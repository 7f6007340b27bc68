"""check_op: what every op must pass, on every device it has.

A test file describes its op once (an :class:`Op`) and hands it, with cases, to :func:`check_op` (values, gradients,
layouts, determinism, per case) and once to :func:`check_contract` (gradcheck, opcheck, compile, autocast, second
derivatives). ``pytest --full`` runs the product of all cases instead of the pairwise sample.
"""

import itertools
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
#: relative Frobenius error allowed against the fp64 oracle (DESIGN: 1e-5 in fp32, 1e-2 in bf16)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 1e-2, torch.float16: 2e-3}
#: CSR shapes that broke somebody's kernel before
GRAPHS = (
    *("random", "empty", "zero_edges", "one_node", "isolated", "duplicates", "self_loops"),
    *("hub", "hub_source", "wide", "tall"),
)
WIDTHS = (1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 48, 63, 64, 65, 67)
LAYOUTS = ("contiguous", "transposed", "expanded", "strided")


@dataclass
class Op:
    """An op under test. ``inputs(case)`` returns its arguments by name, in the order of ``call``'s parameters."""

    call: Callable[..., Tensor | tuple[Tensor, ...]]
    oracle: Callable[..., Tensor | tuple[Tensor, ...]]  # same arguments in float64, differentiable, independent code
    inputs: Callable[["Case"], dict]
    grad: tuple[str, ...] = ()  # names of differentiable arguments (skipped when None)
    autocast: tuple[str, ...] = ()  # names that autocast converts; the first output then has the lower dtype
    raw: object = None  # the torch.ops overload, for opcheck
    raw_args: Callable[["Case"], tuple] | None = None  # its arguments, where they differ from the call's
    exact_outputs: tuple[int, ...] = ()  # outputs compared exactly (indices)
    grad_tolerance: dict = field(default_factory=dict)  # where a gradient is ill-conditioned: say why beside it


@dataclass(frozen=True)
class Case:
    graph: str = "random"
    width: int = 16
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    variant: object = None  # the op's own axis: a reduction, optional arguments, ...
    device: str = "cpu"

    def __str__(self):
        parts = (self.graph, self.width, str(self.dtype).removeprefix("torch."), self.layout, self.variant, self.device)
        return "-".join(str(p) for p in parts if p is not None)

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(random.Random(str(self)).getrandbits(63))

    def csr(self) -> tuple[Tensor, ...]:
        """(crow, col, ccol, row, perm) of this case's graph, on its device, and its (M, N)."""
        g = self.generator()
        m, n, e = {
            "random": (23, 23, 90),
            "empty": (0, 0, 0),
            "zero_edges": (9, 9, 0),
            "one_node": (1, 1, 1),
            "isolated": (40, 40, 12),
            "duplicates": (6, 6, 80),
            "self_loops": (12, 12, 40),
            "hub": (30, 10_050, 300),
            "hub_source": (10_050, 30, 300),
            "wide": (5, 60, 70),
            "tall": (60, 5, 70),
        }[self.graph]
        target, source = torch.randint(m or 1, (e,), generator=g), torch.randint(n or 1, (e,), generator=g)
        if self.graph == "self_loops":
            target[: e // 2] = source[: e // 2]
        everyone, seven = torch.arange(10_000), torch.full((10_000,), 7)
        if self.graph == "hub":  # node 7 has more than 10,000 neighbours
            target, source = torch.cat([target, seven]), torch.cat([source, everyone])
        if self.graph == "hub_source":  # node 7 is the neighbour of more than 10,000 nodes
            target, source = torch.cat([target, everyone]), torch.cat([source, seven])
        return (*(t.to(self.device) for t in csr_of(target, source, m, n)), (m, n))

    def tensor(self, *shape: int, dtype: torch.dtype | None = None, low: float | None = None) -> Tensor:
        """Random values of ``shape`` in the case's dtype and layout; uniform in [low, 1] when ``low`` is given."""
        g = self.generator()
        g.manual_seed(g.initial_seed() + sum(shape) + len(shape))

        def draw(*s):
            v = torch.randn(s, generator=g, dtype=torch.float64) + 0.5  # off zero: a lone dot product must not cancel
            return v if low is None else low + (1 - low) * torch.rand(s, generator=g, dtype=torch.float64)

        if len(shape) < 2 or self.layout == "contiguous":
            t = draw(*shape)
        elif self.layout == "transposed":
            t = draw(*shape[:-2], shape[-1], shape[-2]).transpose(-1, -2)
        elif self.layout == "expanded":
            t = draw(*shape[:-1], 1).expand(*shape)
        else:
            t = draw(*shape[:-1], 2 * shape[-1] + 1)[..., 1::2]
        return _cast(t, dtype or self.dtype, self.device)


def _cast(t: Tensor, dtype: torch.dtype, device: str) -> Tensor:
    """``t.to`` that keeps strides, zero strides included."""
    if 0 in t.stride() and t.numel():
        return t[..., :1].to(device, dtype, copy=True, memory_format=torch.contiguous_format).expand(t.shape)
    out = torch.empty_strided(t.size(), t.stride(), dtype=dtype, device=device)
    return out.copy_(t)


def csr_of(target: Tensor, source: Tensor, m: int, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(crow, col, ccol, row, perm) as int32, by plain sorting: the tests' own CSR builder."""
    key = (target * max(n, 1) + source).sort().values
    row, col = key // max(n, 1), key % max(n, 1)
    perm = torch.argsort(col, stable=True)

    def offsets(index, size):
        return torch.cat([torch.zeros(1, dtype=torch.long), torch.bincount(index, minlength=size).cumsum(0)])

    return tuple(t.int() for t in (offsets(row, m), col, offsets(col, n), row[perm], perm))


def devices() -> list[str]:
    return ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def pairwise(**axes: Sequence) -> list[dict]:
    """A small set of rows in which every pair of values of any two axes occurs (greedy, deterministic)."""
    names, rng = list(axes), random.Random(0)
    todo = {((a, x), (b, y)) for (a, xs), (b, ys) in itertools.combinations(axes.items(), 2) for x in xs for y in ys}
    rows = []
    while todo:
        (a, x), (b, y) = min(todo, key=str)
        best, best_score = None, -1
        for _ in range(30):
            row = {n: rng.choice(list(axes[n])) for n in names} | {a: x, b: y}
            score = sum((p, q) in todo for p, q in itertools.combinations(row.items(), 2))
            if score > best_score:
                best, best_score = row, score
        rows.append(best)
        todo -= set(itertools.combinations(best.items(), 2))
    return rows


def cases(variants: Sequence = (None,), graphs=GRAPHS, widths=WIDTHS, dtypes=DTYPES, layouts=LAYOUTS):
    """Pairwise cases over graph, width, dtype, layout, variant and device; marks them, for pytest.mark.parametrize."""
    axes = dict(graph=graphs, width=widths, dtype=dtypes, layout=layouts, variant=variants, device=devices())
    sample = [Case(**row) for row in pairwise(**{k: v for k, v in axes.items() if len(v) > 1})]
    sample = sample[:: int(os.environ.get("SPARSEGNN_TEST_STRIDE", "1"))]  # sub-runs: other ISAs, sanitizers
    if os.environ.get("SPARSEGNN_TEST_FULL") != "1":  # 110,000 cases that would be made to be left out
        return [pytest.param(c, id=str(c)) for c in sample]
    chosen = {str(c) for c in sample}
    extra = (Case(**dict(zip(axes, row, strict=True))) for row in itertools.product(*axes.values()))
    full = [pytest.param(c, marks=pytest.mark.full, id=str(c)) for c in extra if str(c) not in chosen]
    return [pytest.param(c, id=str(c)) for c in sample] + full


def _tuple(outputs) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _double(value):
    return value.detach().cpu().double() if isinstance(value, Tensor) and value.is_floating_point() else value


def relative_error(got: Tensor, want: Tensor) -> float:
    """Relative Frobenius error; absolute where the wanted norm is zero but for the rounding of float64.

    Inputs are of the order of 1: the gradient of a score is exactly zero where it has the only edge of its row.
    """
    got, want = got.detach().cpu().double(), want.detach().cpu().double()
    assert got.shape == want.shape, f"shape {list(got.shape)}, wanted {list(want.shape)}"
    norm = want.norm().item()
    return ((got - want).norm().item() / norm) if norm > 1e-14 else got.norm().item()


def _run(op: Op, inputs: dict, function=None, flow_dtype=None):
    """Outputs of the op, and the gradients of sum(out * random) with respect to ``op.grad``."""
    leaves = {n: inputs[n].detach().requires_grad_() for n in op.grad if inputs.get(n) is not None}
    outputs = _tuple((function or op.call)(**{**inputs, **leaves}))
    real = [o for o in outputs if o.requires_grad and o.numel()]
    if not leaves or not real:
        return outputs, {n: torch.zeros_like(t) for n, t in leaves.items()}
    g = torch.Generator().manual_seed(5)
    flows = [torch.randn(o.shape, generator=g, dtype=torch.float64) + 0.5 for o in real]  # off zero, as inputs are
    flows = [f.to(flow_dtype or o.dtype) for f, o in zip(flows, real, strict=True)]
    flows = [f.to(o) for f, o in zip(flows, real, strict=True)]  # rounded alike for the op and its oracle
    grads = torch.autograd.grad(real, list(leaves.values()), flows, allow_unused=True)
    zero = (torch.zeros_like(t) if v is None else v for t, v in zip(leaves.values(), grads, strict=True))
    return outputs, dict(zip(leaves, zero, strict=True))


def check_op(op: Op, case: Case) -> None:
    """Values and gradients against the fp64 oracle, and the same bits for one thread, two threads and dense layout."""
    inputs = op.inputs(case)
    tolerance, grad_tolerance = TOLERANCE[case.dtype], (TOLERANCE | op.grad_tolerance)[case.dtype]
    outputs, grads = _run(op, inputs)
    on_cpu = {n: v.cpu() if isinstance(v, Tensor) else v for n, v in inputs.items()}
    wanted, wanted_grads = _run(op, {n: _double(v) for n, v in on_cpu.items()}, op.oracle, case.dtype)
    for i, (got, want) in enumerate(zip(outputs, wanted, strict=False)):
        if i in op.exact_outputs:
            assert torch.equal(got.cpu().long(), want.long()), f"output {i} differs"
        else:
            error = relative_error(got, want)
            assert error <= tolerance, f"output {i}: relative error {error:.2e} > {tolerance:.0e}"
            assert case.dtype == got.dtype, f"output {i}: dtype {got.dtype}, wanted {case.dtype}"
    for name, want in wanted_grads.items():
        error = relative_error(grads[name], want)
        assert error <= grad_tolerance, f"gradient of {name}: relative error {error:.2e} > {grad_tolerance:.0e}"
        assert grads[name].dtype == inputs[name].dtype
    dense = {n: v.contiguous() if isinstance(v, Tensor) else v for n, v in inputs.items()}
    _same_bits(_run(op, dense), (outputs, grads), "contiguous inputs")
    if case.device == "cpu":
        threads = torch.get_num_threads()
        try:
            for count in {1, 2} - {threads}:
                torch.set_num_threads(count)
                _same_bits(_run(op, inputs), (outputs, grads), f"{count} thread(s)")
        finally:
            torch.set_num_threads(threads)


def _same_bits(run, expected, what: str) -> None:
    for got, want in zip([*run[0], *run[1].values()], [*expected[0], *expected[1].values()], strict=True):
        assert torch.equal(torch.nan_to_num(got), torch.nan_to_num(want)), f"other bits with {what}"


def check_contract(op: Op, case: Case | None = None) -> None:
    """gradcheck, also of the gradient, opcheck (all four), compile without graph breaks, autocast."""
    case = case or Case(width=5)
    _gradcheck(op, Case(**{**case.__dict__, "dtype": torch.float64, "width": 3}))
    _opcheck(op, case)
    _compile(op, case)
    if op.autocast:
        _autocast(op, case)


def _gradcheck(op: Op, case: Case) -> None:
    inputs = op.inputs(case)
    names = [n for n in op.grad if inputs.get(n) is not None]
    leaves = [inputs[n].detach().clone().requires_grad_() for n in names]

    def function(*values):
        outputs = _tuple(op.call(**{**inputs, **dict(zip(names, values, strict=True))}))
        return tuple(o for o in outputs if o.is_floating_point() and o.requires_grad)

    if names:
        assert torch.autograd.gradcheck(function, leaves, atol=1e-6)
        assert torch.autograd.gradgradcheck(function, leaves, atol=1e-6, fast_mode=True)


def _opcheck(op: Op, case: Case) -> None:
    for layout in ("contiguous", "strided"):
        at = Case(**{**case.__dict__, "layout": layout})
        inputs = op.inputs(at)
        args = op.raw_args(at) if op.raw_args else tuple(inputs.values())
        floats = {id(inputs[n]) for n in op.grad if inputs.get(n) is not None}
        args = tuple(a.detach().requires_grad_() if id(a) in floats else a for a in args)
        torch.library.opcheck(op.raw or op.call, args)


def _compile(op: Op, case: Case) -> None:
    torch._dynamo.reset()
    inputs = op.inputs(case)
    compiled = torch.compile(lambda kw: op.call(**kw), fullgraph=True, dynamic=True)
    eager = _run(op, inputs)
    _same_bits(_run(op, inputs, lambda **kw: compiled(kw)), eager, "torch.compile")
    wider = op.inputs(Case(**{**case.__dict__, "width": case.width + 3}))
    _same_bits(_run(op, wider, lambda **kw: compiled(kw)), _run(op, wider), "torch.compile, another shape")


def _autocast(op: Op, case: Case) -> None:
    low = {"cpu": torch.bfloat16, "cuda": torch.float16}[case.device]
    inputs = op.inputs(case)
    with torch.autocast(case.device, dtype=low):
        outputs, grads = _run(op, inputs)
    assert outputs[0].dtype == low
    cast = {n: v.to(low) if n in op.autocast and v is not None else v for n, v in inputs.items()}
    assert torch.equal(outputs[0], _tuple(op.call(**cast))[0])
    for name, grad in grads.items():
        assert grad.dtype == inputs[name].dtype, f"gradient of {name} under autocast"
