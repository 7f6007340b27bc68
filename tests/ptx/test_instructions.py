"""Opcodes on hand-made PTX, against values by numpy or by the tables of the manual."""

import numpy as np
import pytest

from .conftest import kernel

pytestmark = pytest.mark.deep
LANES = 32
REGISTER = {2: "%rs", 4: "%r", 8: "%rd"}


def of_lanes(module, statement: str, sources, result, predicates: str = "") -> np.ndarray:
    """The result of one statement for 32 lanes: `a`, `b`, ... in it are the sources, `d` is the result."""
    arrays = [np.ascontiguousarray(np.broadcast_to(s, LANES)) for s in sources]
    out = np.zeros(LANES, result)
    body = ["mov.u32 %r30, %tid.x;", predicates]
    names = {}
    for i, array in enumerate((*arrays, out)):
        size = array.itemsize
        name = f"{REGISTER[max(size, 2)]}{20 + i}"
        names["d" if array is out else "abcef"[i]] = name
        body.append(f"mad.wide.u32 %rd{10 + i}, %r30, {size}, %rd{i};")
        if array is not out:
            body.append(f"ld.global.{'u' if size < 2 else 'b'}{8 * size} {name}, [%rd{10 + i}];")
    words = [names.get(w, w) for w in statement.replace(",", " , ").replace(";", " ; ").split()]
    body += [" ".join(words), f"st.global.b{8 * out.itemsize} [%rd{10 + len(arrays)}], {names['d']};"]
    module.ptx_load(kernel("\n".join(body), len(arrays) + 1))
    return module.ptx_run("hand_made", [*arrays, out])[-1]


def integers(dtype, seed=0) -> np.ndarray:
    """Numbers of every size, and those at the ends."""
    info, rng = np.iinfo(dtype), np.random.default_rng(seed)
    ends = [info.min, info.max, 0, 1, info.max - 1, info.min + 1]
    some = rng.integers(info.min, info.max, LANES - len(ends), dtype, endpoint=True)
    return np.concatenate([np.array(ends, dtype), some >> rng.integers(0, info.bits - 1, some.size).astype(dtype)])


def floats(dtype=np.float32, seed=0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.5, 2.5, -2.5, 1e-40, -1e-40, 3.4e38]
    return np.concatenate([special, rng.standard_normal(LANES - len(special)) * 10.0 ** rng.integers(-6, 6)]).astype(
        dtype
    )


def by_python(f, *sources, bits: int) -> np.ndarray:
    """f over Python's integers, cut to bits."""
    return np.array([f(*map(int, row)) % 2**bits for row in zip(*sources, strict=True)], f"u{bits // 8}")


def same_bits(actual, expected):
    np.testing.assert_array_equal(actual.view(f"u{actual.itemsize}"), expected.view(f"u{expected.itemsize}"))


@pytest.mark.parametrize("sign", "us")
@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("op, f", [
    ("add", lambda a, b: a + b), ("sub", lambda a, b: a - b), ("mul.lo", lambda a, b: a * b),
    ("min", min), ("max", max),
], ids=lambda v: v if isinstance(v, str) else "")  # fmt: skip
def test_integers_of_both_signs(machine, op, f, bits, sign):
    dtype = np.dtype(f"{'i' if sign == 's' else 'u'}{bits // 8}")
    a, b = integers(dtype), integers(dtype, 1)[::-1]
    got = of_lanes(machine, f"{op}.{sign}{bits} d, a, b;", [a, b], dtype)
    same_bits(got, by_python(f, a, b, bits=bits))


@pytest.mark.parametrize("sign", "us")
@pytest.mark.parametrize("bits", [16, 32])
def test_wide_products_keep_the_sign(machine, bits, sign):
    """mul.wide and mad.wide of 16 and 32 bits, mul.hi and mad.hi."""
    kind = "i" if sign == "s" else "u"
    narrow, wide = np.dtype(f"{kind}{bits // 8}"), np.dtype(f"{kind}{bits // 4}")
    a, b, c = integers(narrow), integers(narrow, 1)[::-1], integers(wide, 2)
    got = of_lanes(machine, f"mul.wide.{sign}{bits} d, a, b;", [a, b], wide)
    same_bits(got, by_python(lambda a, b: a * b, a, b, bits=2 * bits))
    got = of_lanes(machine, f"mad.wide.{sign}{bits} d, a, b, c;", [a, b, c], wide)
    same_bits(got, by_python(lambda a, b, c: a * b + c, a, b, c, bits=2 * bits))
    got = of_lanes(machine, f"mul.hi.{sign}{bits} d, a, b;", [a, b], narrow)
    same_bits(got, by_python(lambda a, b: a * b >> bits, a, b, bits=bits))


@pytest.mark.parametrize("sign", "us")
def test_division_and_shifts(machine, sign):
    dtype = np.dtype("i4" if sign == "s" else "u4")
    a, b = integers(dtype), np.where(integers(dtype, 1) == 0, 3, integers(dtype, 1))[::-1].astype(dtype)
    truncated = np.trunc
    wanted = [int(truncated(int(x) / int(y))) for x, y in zip(a, b, strict=True)]
    same_bits(of_lanes(machine, f"div.{sign}32 d, a, b;", [a, b], dtype), by_python(lambda q: q, wanted, bits=32))
    rest = [int(x) - int(y) * q for x, y, q in zip(a, b, wanted, strict=True)]
    same_bits(of_lanes(machine, f"rem.{sign}32 d, a, b;", [a, b], dtype), by_python(lambda q: q, rest, bits=32))
    n = np.arange(LANES, dtype=np.uint32) + 8
    same_bits(of_lanes(machine, f"shr.{sign}32 d, a, b;", [a, n], dtype), by_python(lambda a, n: a >> n, a, n, bits=32))
    same_bits(of_lanes(machine, "shl.b32 d, a, b;", [a, n], dtype), by_python(lambda a, n: a << n, a, n, bits=32))


def bits_of(x: int, at: int, length: int) -> list[int]:
    """What bfe reads: bits of a 32-bit register; beyond its end none."""
    return [x >> i & 1 for i in range(at, min(at + length, 32))]


def test_bit_fields(machine):
    """bfe and bfi by the loops of the manual, lengths of 0 and beyond the end included."""
    a, b = integers(np.dtype("u4")), integers(np.dtype("u4"), 1)
    at = (np.arange(LANES, dtype=np.uint32) * 5) % 40
    length = (np.arange(LANES, dtype=np.uint32) * 11) % 37

    def extract(x, p, n, signed):
        found = bits_of(x, p, n)
        sign = (x >> min(p + n - 1, 31) & 1) if signed and n else 0
        return sum(bit << i for i, bit in enumerate(found + [sign] * (32 - len(found))))

    def insert(x, y, p, n):
        for i in range(n):
            if p + i < 32:
                y = (y & ~(1 << p + i)) | ((x >> i & 1) << p + i)
        return y

    for sign in "us":
        got = of_lanes(machine, f"bfe.{sign}32 d, a, b, c;", [a, at, length], np.uint32)
        same_bits(got, by_python(lambda x, p, n, s=sign: extract(x, p, n, s == "s"), a, at, length, bits=32))
    got = of_lanes(machine, "bfi.b32 d, a, b, c, e;", [a, b, at, length], np.uint32)
    same_bits(got, by_python(insert, a, b, at, length, bits=32))


def test_permuted_bytes(machine):
    """prmt: digits 0 to 7 name bytes, 8 to 15 spread their signs."""
    a, b, selector = (integers(np.dtype("u4"), s) for s in range(3))

    def permute(x, y, s):
        data = x.to_bytes(4, "little") + y.to_bytes(4, "little")
        digits = [s >> 4 * i & 15 for i in range(4)]
        return sum((data[d & 7] if d < 8 else 255 * (data[d & 7] >> 7)) << 8 * i for i, d in enumerate(digits))

    got = of_lanes(machine, "prmt.b32 d, a, b, c;", [a, b, selector], np.uint32)
    same_bits(got, by_python(permute, a, b, selector, bits=32))


def test_counting_bits(machine):
    for bits in (32, 64):
        a = integers(np.dtype(f"u{bits // 8}"))
        text = [f"{int(x):0{bits}b}" for x in a]
        got = of_lanes(machine, f"popc.b{bits} d, a;", [a], np.uint32)
        np.testing.assert_array_equal(got, [t.count("1") for t in text])
        got = of_lanes(machine, f"clz.b{bits} d, a;", [a], np.uint32)
        np.testing.assert_array_equal(got, [len(t) - len(t.lstrip("0")) for t in text])
        got = of_lanes(machine, f"brev.b{bits} d, a;", [a], a.dtype)
        np.testing.assert_array_equal(got, np.array([int(t[::-1], 2) for t in text], a.dtype))
        got = of_lanes(machine, f"bfind.u{bits} d, a;", [a], np.int32)
        np.testing.assert_array_equal(got, [int(x).bit_length() - 1 for x in a])
        got = of_lanes(machine, f"bfind.shiftamt.u{bits} d, a;", [a], np.int32)
        np.testing.assert_array_equal(got, [bits - int(x).bit_length() if x else -1 for x in a])


def test_funnel_shifts_and_logic(machine):
    a, b, n = integers(np.dtype("u4")), integers(np.dtype("u4"), 1), (np.arange(LANES) * 2).astype(np.uint32)
    got = of_lanes(machine, "shf.l.wrap.b32 d, a, b, c;", [a, b, n], np.uint32)
    same_bits(got, by_python(lambda a, b, n: (b << 32 | a) << (n & 31) >> 32, a, b, n, bits=32))
    got = of_lanes(machine, "shf.r.clamp.b32 d, a, b, c;", [a, b, n], np.uint32)
    same_bits(got, by_python(lambda a, b, n: (b << 32 | a) >> min(n, 32), a, b, n, bits=32))
    got = of_lanes(machine, "lop3.b32 d, a, b, c, 0xCA;", [a, b, n], np.uint32)  # a ? b : c
    same_bits(got, by_python(lambda a, b, c: a & b | ~a & c, a, b, n, bits=32))


COMPARISONS = {
    "eq": np.equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "ne": lambda a, b: (a < b) | (a > b),
}  # fmt: skip


@pytest.mark.parametrize("name", [*COMPARISONS, *(c + "u" for c in COMPARISONS), "num", "nan"])
def test_comparisons_of_floats(machine, name):
    """A NaN makes the ordered ones false, the unordered ones true."""
    a, b = floats(), np.roll(floats(), 3)
    b[20:] = a[20:]
    unordered = np.isnan(a) | np.isnan(b)
    wanted = {"num": ~unordered, "nan": unordered}.get(name)
    if wanted is None:
        wanted = COMPARISONS[name[:2]](a, b) | unordered if name.endswith("u") else COMPARISONS[name](a, b) & ~unordered
    statement = f"setp.{name}.f32 %p1, a, b; selp.b32 d, 1, 0, %p1;"
    np.testing.assert_array_equal(of_lanes(machine, statement, [a, b], np.uint32), wanted)


def test_comparisons_are_combined(machine):
    """setp.lt.and d|q, a, b, !c: d = (a < b) and not c, q = not (a < b) and not c."""
    a, b = np.arange(LANES, dtype=np.int32) - 16, np.zeros(LANES, np.int32)
    odd = np.arange(LANES) % 2 == 1
    before = "and.b32 %r31, %r30, 1; setp.eq.s32 %p3, %r31, 1;"
    for combine, f in (("and", np.logical_and), ("or", np.logical_or), ("xor", np.logical_xor)):
        statement = f"setp.lt.{combine}.s32 %p1|%p2, a, b, !%p3; selp.b32 %r32, 1, 0, %p1; selp.b32 %r33, 2, 0, %p2;"
        got = of_lanes(machine, statement + " add.s32 d, %r32, %r33;", [a, b], np.uint32, before)
        np.testing.assert_array_equal(got, f(a < b, ~odd) + 2 * f(~(a < b), ~odd))
    got = of_lanes(machine, "setp.lo.u32 %p1, a, b; selp.b32 d, 1, 0, %p1;", [a, b + 5], np.uint32)
    np.testing.assert_array_equal(got, a.view(np.uint32) < 5)


def test_float_arithmetic(machine):
    """Rounded once; fma too, which double arithmetic shows."""
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(LANES).astype(np.float32) for _ in range(3))
    c = (-a * b * (1 + rng.standard_normal(LANES) * 1e-7)).astype(np.float32)  # they cancel: a second rounding shows
    exact = a.astype(np.longdouble) * b + c
    same_bits(of_lanes(machine, "fma.rn.f32 d, a, b, c;", [a, b, c], np.float32), exact.astype(np.float32))
    same_bits(of_lanes(machine, "mul.rn.f32 d, a, b;", [a, b], np.float32), a * b)
    same_bits(of_lanes(machine, "div.rn.f32 d, a, b;", [a, b], np.float32), a / b)
    same_bits(of_lanes(machine, "sqrt.rn.f32 d, a;", [abs(a)], np.float32), np.sqrt(abs(a)))
    down = exact.astype(np.float32)
    down = np.where(down > exact, np.nextafter(down, np.float32(-np.inf)), down)
    same_bits(of_lanes(machine, "fma.rm.f32 d, a, b, c;", [a, b, c], np.float32), down)
    small = np.array([1e-40, -1e-40, 1.0, 2.0] * 8, np.float32)
    flushed = np.array([0.0, -0.0, 1.0, 2.0] * 8, np.float32)
    same_bits(of_lanes(machine, "mul.ftz.f32 d, a, 0f3F800000;", [small], np.float32), flushed)
    wanted = np.clip(np.nan_to_num(floats(), nan=0, posinf=9, neginf=-9), 0, 1).astype(np.float32)
    np.testing.assert_array_equal(of_lanes(machine, "add.sat.f32 d, a, 0f00000000;", [floats()], np.float32), wanted)


def test_extrema_of_floats(machine):
    """Of a NaN and a number the number; of two NaN the one NaN of the hardware; -0 is below +0."""
    a = np.array([np.nan, np.nan, 1, -0.0, 0.0, 2, -np.inf, 5] * 4, np.float32)
    b = np.array([1, np.nan, np.nan, 0.0, -0.0, 3, 4, 5] * 4, np.float32)
    low = np.array([1, np.nan, 1, -0.0, -0.0, 2, -np.inf, 5] * 4, np.float32)
    high = np.array([1, np.nan, 1, 0.0, 0.0, 3, 4, 5] * 4, np.float32)
    low.view(np.uint32)[1::8] = high.view(np.uint32)[1::8] = 0x7FFFFFFF
    same_bits(of_lanes(machine, "min.f32 d, a, b;", [a, b], np.float32), low)
    same_bits(of_lanes(machine, "max.f32 d, a, b;", [a, b], np.float32), high)
    high.view(np.uint32)[0::8] = high.view(np.uint32)[2::8] = 0x7FFFFFFF
    same_bits(of_lanes(machine, "max.NaN.f32 d, a, b;", [a, b], np.float32), high)


@pytest.mark.parametrize("mode, f", [("rni", np.rint), ("rzi", np.trunc), ("rmi", np.floor), ("rpi", np.ceil)],
                         ids=["rni", "rzi", "rmi", "rpi"])  # fmt: skip
def test_floats_become_integers(machine, mode, f):
    """Rounded as asked; NaN is 0, what is out of range the nearest end."""
    x = floats()
    x[11:] = np.linspace(-4, 4, LANES - 11)
    whole = f(x.astype(np.float64))
    signed = np.clip(np.nan_to_num(whole, nan=0), -(2.0**31), 2.0**31 - 1).astype(np.int32)
    same_bits(of_lanes(machine, f"cvt.{mode}.s32.f32 d, a;", [x], np.int32), signed)
    unsigned = np.clip(np.nan_to_num(whole, nan=0), 0, 2.0**32 - 1).astype(np.uint32)
    same_bits(of_lanes(machine, f"cvt.{mode}.u32.f32 d, a;", [x], np.uint32), unsigned)
    got = of_lanes(machine, f"cvt.{mode}.f32.f32 d, a;", [x], np.float32)
    np.testing.assert_array_equal(got, f(x))


def test_conversions_between_widths(machine):
    a = integers(np.dtype("u4"))
    for kind, sign in (("i", "s"), ("u", "u")):
        for bits in (8, 16):
            narrow = a.astype(f"{kind}{bits // 8}")
            got = of_lanes(machine, f"cvt.{sign}64.{sign}{bits} d, a;", [a.astype(np.uint16)], f"{kind}8")
            np.testing.assert_array_equal(got, narrow.astype(f"{kind}8"))
    x = floats()
    got = of_lanes(machine, "cvt.rn.f16.f32 d, a;", [x[5:].repeat(2)[:LANES]], np.float16)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(got, x[5:].repeat(2)[:LANES].astype(np.float16))
    got = of_lanes(machine, "cvt.rn.f32.s64 d, a;", [integers(np.dtype("i8"))], np.float32)
    np.testing.assert_array_equal(got, integers(np.dtype("i8")).astype(np.float32))
    ties = np.array([0x3F801000, 0x3F803000, 0x3F800FFF, 0xBF801000, 0x7F800001] + [0] * 27, np.uint32)
    wanted = np.array([0x3F802000, 0x3F804000, 0x3F800000, 0xBF802000, 0x7FFFFFFF] + [0] * 27, np.uint32)
    same_bits(of_lanes(machine, "cvt.rna.tf32.f32 d, a;", [ties], np.uint32), wanted)  # ties away from zero


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("width", [32, 8])
def test_shuffles(machine, mode, width):
    """By the pseudocode of the manual: who lies beyond the bound keeps its own, and its predicate is false."""
    a = np.arange(LANES, dtype=np.uint32) * 3 + 1
    b = np.array([1, 2, 3, 9, 5, 6, 7, 31] * 4, np.uint32)
    clamp = (32 - width) << 8 | (0 if mode == "up" else 31)
    statement = f"shfl.sync.{mode}.b32 %r31|%p1, a, b, {clamp}, -1; selp.b32 %r32, 1000, 0, %p1; add.u32 d, %r31, %r32;"
    wanted = []
    for lane, n in enumerate(b.tolist()):
        first = lane // width * width
        source = {"up": lane - n, "down": lane + n, "bfly": lane ^ n, "idx": first + n % width}[mode]
        inside = source >= first if mode == "up" else source < first + width
        wanted.append(a[source if inside else lane] + 1000 * inside)
    np.testing.assert_array_equal(of_lanes(machine, statement, [a, b], np.uint32), wanted)


def test_votes_and_reductions(machine):
    a = integers(np.dtype("i4"))
    before = "setp.lt.u32 %p3, %r30, 5;"
    got = of_lanes(machine, "vote.sync.ballot.b32 d, !%p3, -1;", [a], np.uint32, before)
    assert set(got) == {0xFFFFFFE0}
    for kind, yes in (("any", 1), ("all", 0), ("uni", 0)):
        got = of_lanes(machine, f"vote.sync.{kind}.pred %p4, %p3, -1; selp.b32 d, 1, 0, %p4;", [a], np.uint32, before)
        assert set(got) == {yes}, kind
    for kind, f in (("add.s32", lambda x: x.astype(np.int64).sum()), ("min.s32", np.min), ("max.s32", np.max),
                    ("and.b32", np.bitwise_and.reduce), ("or.b32", np.bitwise_or.reduce)):  # fmt: skip
        got = of_lanes(machine, f"redux.sync.{kind} d, a, -1;", [a], np.int32)
        assert set(got.view(np.uint32)) == {int(f(a)) % 2**32}, kind


def test_atomics(machine):
    """Every lane adds to one number, and gets what was there before: in some order, each other's sums."""
    body = "mov.u32 %r1, %tid.x; add.u32 %r2, %r1, 1; atom.global.add.u32 %r3, [%rd0], %r2;"
    body += "mad.wide.u32 %rd2, %r1, 4, %rd1; st.global.u32 [%rd2], %r3;"
    machine.ptx_load(kernel(body, 2))
    total, before = machine.ptx_run("hand_made", [np.zeros(1, np.uint32), np.zeros(LANES, np.uint32)])
    assert total == 528 and len(set(before)) == LANES and before.min() == 0


@pytest.mark.parametrize("dtype", ["tf32", "bf16", "f16"])
def test_matrix_products(machine, dtype):
    """Fragments as the manual's figures show them, element by element."""
    depth = 8 if dtype == "tf32" else 16
    rng = np.random.default_rng(1)
    a, b, c = (rng.integers(-8, 9, s).astype(np.float32) for s in ((16, depth), (depth, 8), (16, 8)))
    group, thread = np.divmod(np.arange(LANES), 4)

    def word(matrix, row, column):
        """The registers of one number, or of two neighbours along k."""
        if dtype == "tf32":
            return matrix[row, column].view(np.uint32)
        low, high = matrix[row, 2 * column], matrix[row, 2 * column + 1]
        if dtype == "f16":
            return (
                low.astype(np.float16).view(np.uint16) | high.astype(np.float16).view(np.uint16).astype(np.uint32) << 16
            )
        return low.view(np.uint32) >> 16 | high.view(np.uint32)

    registers = [word(a, group, thread), word(a, group + 8, thread), word(a, group, thread + 4),
                 word(a, group + 8, thread + 4), word(b.T, group, thread), word(b.T, group, thread + 4)]  # fmt: skip
    registers += [c[group + 8 * (i // 2), 2 * thread + i % 2].view(np.uint32) for i in range(4)]
    body = ["mov.u32 %r30, %tid.x;", "mad.wide.u32 %rd2, %r30, 4, %rd0;", "mad.wide.u32 %rd3, %r30, 4, %rd1;"]
    body += [f"ld.global.u32 %r{i}, [%rd2+{128 * i}];" for i in range(10)]
    shape = "m16n8k8" if dtype == "tf32" else "m16n8k16"
    body.append(f"mma.sync.aligned.{shape}.row.col.f32.{dtype}.{dtype}.f32 {{%r10,%r11,%r12,%r13}}, "
                "{%r0,%r1,%r2,%r3}, {%r4,%r5}, {%r6,%r7,%r8,%r9};")  # fmt: skip
    body += [f"st.global.u32 [%rd3+{128 * i}], %r{10 + i};" for i in range(4)]
    machine.ptx_load(kernel("\n".join(body), 2))
    out = machine.ptx_run("hand_made", [np.stack(registers).astype(np.uint32), np.zeros((4, LANES), np.float32)])[1]
    got = np.empty((16, 8), np.float32)
    for i in range(4):
        got[group + 8 * (i // 2), 2 * thread + i % 2] = out[i]
    np.testing.assert_array_equal(got, a @ b + c)


@pytest.mark.parametrize("statement, said", [
    ("tanh.approx.f32 %r1, %r2;", "unknown opcode tanh"),
    ("add.cc.u32 %r1, %r2, %r3;", "opcode add: unknown modifier .cc"),
    ("add.f16 %rs1, %rs2, %rs3;", "opcode add: unknown type"),
    ("cvt.rz.f16.f32 %rs1, %r2;", "opcode cvt: unknown form: it lacks .rn"),
    ("ld.local.u32 %r1, [%rd1];", "opcode ld: unknown modifier .local"),
    ("add.u32 %r1, %rd2, %r3;", "opcode add: unknown use of register %rd2"),
    ("add.u32 %r1, %r2, %r3, %r4;", "opcode add: unknown form: operand %r4 is left over"),
    ("add.u32 %r1, %r2, nowhere;", "opcode add: unknown operand nowhere"),
    ("atom.global.add.f32 %r1, [%rd1], %r2;", "opcode atom: unknown type"),
    ("bra nowhere;", "no label nowhere"),
    (".local .b8 x[4];", "unknown directive"),
])  # fmt: skip
def test_what_is_not_known_is_named(module, statement, said):
    """With the kernel, and the line and text of the instruction."""
    module.ptx_load(kernel(statement, 1, "strange"))
    with pytest.raises(ValueError, match="PTX of strange") as error:
        module.ptx_decode("strange")
    assert said in str(error.value)
    if statement.partition(" ")[0] != "bra":
        assert statement.rstrip(";") in str(error.value) and "line " in str(error.value)
