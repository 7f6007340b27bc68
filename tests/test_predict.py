"""benchmarks/predict.py: its arithmetic on machine code, degrees and plans made by hand, and what it prints."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "benchmarks" / "cost").is_dir():
    pytest.skip("not run from a checkout", allow_module_level=True)
sys.path[:0] = [str(ROOT / "benchmarks")]

import predict  # noqa: E402
from cost import cases, counts, cubin, degrees, model, sass, schedule  # noqa: E402


def listing(text: str, name: str = "_Z3fooPf") -> str:
    """As cuobjdump prints it: an instruction of 16 bytes a line, its second half in a line of its own."""
    lines = ["\tcode for sm_90", f"\t\tFunction : {name}", '\t.headerflags\t@"EF_CUDA_SM90"']
    for i, line in enumerate(text.strip().splitlines()):
        body = line.strip()
        lines.append(f"        /*{16 * i:04x}*/              {body:<60} ;   /* 0x000000ff00ff7b82 */")
        lines.append(" " * 81 + "/* 0x000fe20000000800 */")
    return "\n".join(lines) + "\n"


def kernel(text: str) -> sass.Kernel:
    return next(sass.read(listing(text)))


#: 0: setup. 0x20: a loop of two gathers, one of which has a branch around two instructions; 0xb0: one gather at a time
LOOPS = """
S2R R0, SR_TID.X
@P0 EXIT
LDG.E.EF.CONSTANT R2, desc[UR4][R2.64]
LDG.E.128.CONSTANT R4, desc[UR4][R4.64]
LDG.E.128.CONSTANT R8, desc[UR4][R8.64]
@!P1 BRA 0x80
FMUL R4, R4, R3
IMAD.WIDE R6, R2, R7, R6
FFMA R10, R4, R3, R10
FFMA R10, R8, R3, R10
@P2 BRA 0x20
LDG.E.128.CONSTANT R4, desc[UR4][R4.64]
FFMA R10, R4, R3, R10
BRA P3, 0xb0
STG.E.128 desc[UR4][R12.64], R8
EXIT
BRA 0x100
"""


# ---- machine code


def test_instructions_are_read_with_their_predicates_and_modifiers():
    found = kernel(LOOPS)
    assert [i.at for i in found.instructions] == list(range(0, 17 * 16, 16))
    i = found.instructions[5]
    assert (i.predicate, i.opcode, i.operands, i.target) == ("!P1", "BRA", "0x80", 0x80)
    assert (found.instructions[3].name, found.instructions[3].kind) == ("LDG", "lsu")
    assert found.instructions[13].falls_through and not found.instructions[15].falls_through
    with pytest.raises(ValueError, match="no instruction of _Z3bar was understood"):
        list(sass.read("\t\tFunction : _Z3bar\n nothing\n"))


@pytest.mark.parametrize(
    "text, target, falls_through",
    [("BRA 0x40", 0x40, False), ("@P0 BRA 0x40", 0x40, True), ("BRA P1, 0x40", 0x40, True),
     ("@UP0 BRA 0x40", 0x40, True), ("BRA.U UP0, 0x40", 0x40, True), ("BRA.DIV UR4, 0x40", None, True),
     ("@PT EXIT", None, False),
     ("EXIT P1", None, True), ("CALL.REL.NOINC 0x40", None, True), ("BSSY B0, 0x40", None, True)],
)  # fmt: skip
def test_where_a_branch_goes(text, target, falls_through):
    i = kernel(text).instructions[0]
    assert (i.target, i.falls_through) == (target, falls_through)


@pytest.mark.parametrize(
    "opcode, kind",
    [("FFMA", "fma"), ("FADD.FTZ", "fma"), ("HMMA.16816.F32.BF16", "mma"), ("LDS.128", "lsu"), ("SHFL.BFLY", "lsu"),
     ("STG.E.EF.128", "lsu"), ("MUFU.EX2", "xu"), ("IMAD.WIDE", "alu"), ("LOP3.LUT", "alu"), ("ISETP.GE.AND", "alu"),
     ("BAR.SYNC.DEFER_BLOCKING", "control"), ("BSYNC", "control")],
)  # fmt: skip
def test_classes(opcode, kind):
    assert kernel(f"{opcode} R0, R1").instructions[0].kind == kind


def test_marks():
    def finds(pattern: str, opcode: str) -> bool:
        return sass.marks(pattern)(sass.Instruction(0, "", opcode, ""))

    assert finds("LDG.128", "LDG.E.128.CONSTANT") and not finds("LDG.128", "LDG.E.64.CONSTANT")
    assert not finds("LDG", "LDS.128") and finds("LDG|LDS", "LDS.128")
    assert finds("LDG !EF", "LDG.E.CONSTANT") and not finds("LDG !EF", "LDG.E.EF.CONSTANT")


def test_loops_and_the_ways_through_them():
    found, gathers = kernel(LOOPS), sass.marks("LDG.128 !EF")
    assert {loop.head: loop.blocks for loop in found.loops} == {0x20: {0x20, 0x60, 0x80}, 0xB0: {0xB0}}
    short, long = (found.ways(gathers, longest)[0][1] for longest in (False, True))
    assert (len(short), len(long)) == (7, 9)
    assert sass.counts(short) == dict(fma=2, mma=0, lsu=3, xu=0, alu=0, control=2)
    assert sass.counts(long) == dict(fma=3, mma=0, lsu=3, xu=0, alu=1, control=2)
    left = found.ways(gathers)[1][1]
    assert [i.name for i in left] == ["LDG", "FFMA", "BRA"]
    assert not found.ways(sass.marks("HMMA"))
    assert [loop.head for loop, _ in found.ways(gathers, False, sass.marks("FMUL"))] == [0xB0]  # the other is barred
    assert found.around(found.loops[0]) == 2 + 3 + 2  # what is before, the second loop once, what is behind
    assert found.most_around(found.loops[0]) == 7


def test_the_most_around_a_loop():
    text = """
    @P0 BRA 0x30
    MOV R0, R1
    MOV R0, R2
    FFMA R4, R1, R1, R4
    @P1 BRA 0x30
    @P2 EXIT
    STG.E desc[UR4][R2.64], R4
    EXIT
    """
    found = kernel(text)
    (loop,) = found.loops
    assert (loop.head, found.around(loop), found.most_around(loop)) == (0x30, 1 + 3, 3 + 3)
    stores = sass.marks("STG")  # what is behind must pass it; before, there is none, and the fewest count
    assert found.most_around(loop, stores) == 1 + 3
    assert found.most_around(loop, sass.marks("MOV")) == 3 + 3


def test_inner_loops_count_and_loops_around_them_do_not():
    text = """
    MOV R0, RZ
    LDG.E R1, desc[UR4][R2.64]
    IADD3 R0, R0, 0x1, RZ
    FFMA R4, R1, R1, R4
    @P0 BRA 0x30
    STG.E desc[UR4][R2.64], R4
    @P1 BRA 0x10
    EXIT
    """
    found = kernel(text)
    assert {loop.head: len(loop.blocks) for loop in found.loops} == {0x10: 3, 0x30: 1}
    (_, way), = found.ways(sass.marks("FFMA"))  # fmt: skip
    assert [i.name for i in way] == ["FFMA", "BRA"]
    (_, outer), = found.ways(sass.marks("LDG"))  # fmt: skip
    assert [i.name for i in outer] == ["LDG", "IADD3", "FFMA", "BRA", "STG", "BRA"]  # the inner loop once


def test_what_parted_lanes_do_is_no_part_of_a_loop():
    """A block beside the loop that only BRA.DIV leads to comes back into it: neither its head nor its instructions."""
    text = """
    MOV R0, RZ
    FFMA R4, R1, R1, R4
    BRA.DIV UR4, 0x60
    SHFL.BFLY PT, R5, R4, 0x1, 0x1f
    @P0 BRA 0x10
    EXIT
    WARPSYNC.COLLECTIVE R8, 0x70
    BRA 0x40
    """
    found = kernel(text)
    (_, way), = found.ways(sass.marks("FFMA"))  # fmt: skip
    assert [i.name for i in way] == ["FFMA", "BRA", "SHFL", "BRA"]


def test_a_count_is_by_units():
    entry = dict(kernel="foo", mark="LDG.128 !EF", each=1, facts={"trips": 1})
    found = counts.count(kernel(LOOPS), entry)
    assert (found.instructions, found.unroll, found.tail, found.around) == (3.5, 2, 3, 7)
    assert (found.of["fma"], found.loads, found.cycles, found.step) == (1, 1.5, 4.5, 7)  # of LSU clocks: 1 + 4 + 4
    assert counts.count(kernel(LOOPS), entry | {"longest": True}).instructions == 4.5
    assert counts.count(kernel(LOOPS), entry | {"each": 2}).tail is None  # one iteration is one unit
    with pytest.raises(ValueError, match="foo: no loop has HMMA"):
        counts.count(kernel(LOOPS), entry | {"mark": "HMMA"})


def test_loops_are_counted_when_they_are_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(counts, "counted", lambda names: asked.append(names) or dict.fromkeys(names, "counted"))
    found = counts.Counts()
    assert found["maxk select"] == "counted" and found["maxk select"] == "counted"
    assert asked == [[n for n, e in counts.table().items() if e["header"] == "maxk.cuh"]]
    with pytest.raises(KeyError, match="nothing: budget.json has no such loop"):
        found["nothing"]


def test_narrower_lanes_stand_in_for_those_that_are_not_counted():
    found = {"x, NL = 2": "two", "x, NL = 4": "four"}
    assert [model.of_lanes(found, "x", n) for n in (1, 2, 4)] == ["two", "two", "four"]
    with pytest.raises(KeyError, match="y: no loop of it"):
        model.of_lanes(found, "y", 2)


def test_clocks_of_the_load_store_unit():
    way = kernel("LDS.128 R0\nLDS.64 R0\nSTS R0\nLDG.E.128 R0\nFFMA R0\nSHFL.BFLY R0").instructions
    assert counts.cycles(way, {}) == 4 + 2 + 1 + 4 + 1
    assert counts.cycles(way, {"uniform": 1}) == 4 + 2 + 1 + 1 + 1  # one word for all lanes
    assert counts.cycles(way, {"uniform": 2}) == 4 + 2 + 1 + 2 + 1
    assert counts.cycles(way, {"conflict": 3}) == 3 * 7 + 4 + 1
    way = kernel("LDS.128 R0\n@P0 LDS.128 R0\n@P0 LDG.E.128 R0").instructions
    assert counts.cycles(way, {"held": 0.25}) == 4 + 1 + 4  # of loads under a predicate a quarter is made


def test_names_and_resources():
    signature = ("void sparsegnn::cuda::segments_kernel<sparsegnn::cuda::GatOp<float, 4, true> >"
                 "(sparsegnn::cuda::GatOp<float, 4, true>, sparsegnn::cuda::RowSegments)")  # fmt: skip
    assert cubin.of_signature(signature) == cubin.plain("segments_kernel<GatOp<float, 4, true>>")
    assert cubin.plain("f_kernel<float, uint8_t, 4>") == cubin.of_signature(
        "void f_kernel<float, unsigned char, 4>(int)"
    )
    assert cubin.enumerators("enum class Kind { none, val };\nenum class Other : int {a}") == {
        "Kind::none": "(Kind)0", "Kind::val": "(Kind)1", "Other::a": "(Other)0"}  # fmt: skip
    text = "Resource usage:\n Function _Z3fooPf:\n  REG:56 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:640\n"
    assert sass.resources(text) == {"_Z3fooPf": dict(registers=56, spilled=0, shared=1024)}


# ---- how rows fill lanes


def test_rows_of_a_warp_wait_for_the_longest():
    """Two rows in a warp, four in a block: (8, 0), (4, 5) and (1, pad), (pad, pad); 4 edges at a time, then single."""
    filled = schedule.fill(np.array([8, 0, 4, 5, 1]), 2, 4, 4, masked=False, setup=2)
    steps = [[4, 2], [3, 4], [3, 0], [0, 0]]
    assert filled.steps == sum(map(max, steps)) == 11
    assert filled.lanes == pytest.approx(sum(map(sum, steps)) / (2 * 11))
    assert filled.alive == pytest.approx(11 / (2 * (4 + 3)))
    assert (filled.warps, filled.bodies, filled.tails) == (3, 2 + 1 + 0, 0 + 1 + 1)
    masked = schedule.fill(np.array([8, 0, 4, 5, 1]), 2, 4, 4, masked=True, setup=2)
    assert (masked.bodies, masked.tails, masked.steps) == (2 + 2 + 1, 0, 4 + 4 + 3)


def test_equal_rows_fill_everything_and_sorted_ones_nearly():
    filled = schedule.fill(np.full(64, 12), 4, 32, 4, masked=False)
    assert (filled.lanes, filled.alive) == (1, 1)
    d = degrees.chung_lu(20_000, 300_000, 2_000)
    lanes = [schedule.fill(x, 4, 32, 4, masked=False).lanes for x in (d, np.sort(d)[::-1])]
    assert lanes[0] < 0.75 and lanes[1] > 0.98


def test_long_rows_are_cut_at_window_borders():
    whole, pieces = schedule.cut(np.array([3, 10, 1, 9]), 8)
    assert whole.tolist() == [3, 0, 1, 0]
    assert pieces.tolist() == [5, 5 + 2, 7]  # edges 3..12 and 14..22 in windows of 8
    whole, pieces = schedule.cut(np.array([3, 4]), 8)
    assert whole.tolist() == [3, 4] and len(pieces) == 0


def test_spans_of_a_list_are_equal_pieces_longest_first():
    assert schedule.spans(np.array([3, 10, 1, 9, 0]), 8).tolist() == [5, 5, 5, 4, 3, 1, 0]
    d = degrees.chung_lu(20_000, 300_000, 2_000)
    assert schedule.spans(d, 256).sum() == d.sum() and schedule.spans(d, 256).max() <= 256
    rows, spans = (schedule.walked(d, 256, 4, 32, 4, True, in_list) for in_list in (False, True))
    assert rows.lanes < 0.8 and spans.lanes > 0.97 and spans.steps < rows.steps


def test_a_warp_takes_as_long_as_the_longest_of_four_outputs():
    assert schedule.quarters(6, 8, 48, 6, 2) == 6 + 6  # all entries: every output has six
    assert schedule.quarters(6, 8, 48, 4, 2) == 2 * (4 + 2)  # in two chunks
    assert schedule.quarters(5, 4, 20, 5, 2) == 6  # two are taken together
    assert schedule.quarters(8, 8, 1, 8, 1) == 1  # one output of eight
    assert 256 * 256 / 40 < schedule.quarters(256, 256, 256 * 256 // 10, 256, 2) < 1.4 * 256 * 256 / 40


def test_windows_add_work_to_that_of_the_rows():
    d = np.array([3, 10, 1, 9])
    found, rows = schedule.walked(d, 8, 1, 2, 4, True, False), schedule.fill(np.array([3, 0, 1, 0]), 1, 2, 4, True)
    assert (found.lanes, found.alive) == (rows.lanes, rows.alive)
    assert found.bodies == 2 + (2 + 2 + 2)  # the rows of 3 and 1, and windows with 5, 7 and 7 edges of the others


def test_stand_ins_have_the_size_that_they_are_named_for():
    graph = degrees.graph("arxiv")
    assert graph.nodes == 169_343 and graph.edges == pytest.approx(2_315_598, rel=0.01)
    assert graph.degrees.max() == pytest.approx(13_161, rel=0.05)
    with pytest.raises(ValueError, match="no graph nothing; there are arxiv"):
        degrees.graph("nothing")


@pytest.mark.parametrize("registers, shared, threads, warps", [
    (32, 0, 256, 64), (56, 0, 256, 32), (64, 0, 256, 32), (65, 0, 256, 24), (128, 0, 256, 16), (40, 96 << 10, 256, 16),
    (32, 0, 64, 64), (16, 0, 32, 32), (255, 227 << 10, 512, 0)])  # fmt: skip
def test_occupancy(registers, shared, threads, warps):
    assert schedule.occupancy(registers, shared, threads) == warps


# ---- the plans are the launchers' own


needs_compiler = pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler")


@needs_compiler
def test_plans_are_those_of_the_launchers():
    """Numbers that follow from segments.cuh's comment: 169,343 rows of 1 KB do not fit 36 MB, slices of 128 B do."""
    p = schedule.plan("segments", 169_343, 169_343, 2_315_598, 256, 4, 4, 1)
    assert (p["lanes"], p["groups"], p["slices"], p["window"]) == (8, 32, 8, 256)
    assert schedule.plan("segments", 169_343, 169_343, 2_315_598, 256, 4, 4, 0)["lanes"] == 32
    assert schedule.plan("segments", 1000, 1000, 9000, 256, 4, 4, 1)["slices"] == 1  # fits as it is
    window = re.search(r"window \* (\d+) < edges", (ROOT / "csrc/common/segments.cuh").read_text())
    edges = 256 * int(window[1]) + 1
    assert schedule.plan("segments", 10, 10, edges, 256, 4, 4, 1)["window"] == 512
    p = schedule.plan("linear", 169_343, 256, 256, 4, 6554)
    assert p["shared"] <= 96 << 10 and p["chunks"] == 1
    assert schedule.plan("vectors", 256) == {"V": 4, "padded": 256}
    alone, together = (schedule.plan("rounds", 256, 32, 48, n, 32) for n in (1, 4))
    assert 3 < alone["rounds"] < together["rounds"] < 12
    assert 32 / 8 <= alone["stay"] < together["stay"] < 32  # of a lane's 32 columns, where 32 of 256 stay
    assert schedule.plan("rounds", 64, 64, 8, 1, 64) == {"rounds": 0, "stay": 64}  # nothing is selected
    # lanes, heads in them, so edges: half a head in 8, two heads in 32, four heads in 16
    of_lanes = {n: schedule.plan("team", 4, width, 4, n)["edges"] for n, width in ((8, 64), (32, 64), (16, 16))}
    assert of_lanes == {8: 8, 32: 16, 16: 4}
    with pytest.raises(RuntimeError, match="unknown question: segments 1"):
        schedule.plan("segments", 1)


def test_what_launchers_say_of_their_tables():
    assert schedule.passes_table("spmm.cuh") and not schedule.passes_table("act_dropout.cuh")


# ---- the model


def made_up(**changes) -> counts.Count:
    values = dict(instructions=10.0, of=dict.fromkeys(sass.CLASSES, 0.0), loads=1.0, cycles=4.0, unroll=4.0, tail=None,
                  around=100, most=150, registers=32, shared=0, facts={"trips": 1})  # fmt: skip
    return counts.Count(**values | changes)


def test_the_longest_bound_counts():
    machine = model.Machine()
    cost = model.Cost("k", {"issue": 1.0, "HBM": 2.0, "L2": 0.5})
    assert (cost.seconds, cost.bound) == (2.0, "HBM")
    assert model.total([cost, cost], machine) == pytest.approx(4 + 2 * machine["launch"])
    assert model.bound([model.Cost("a", {"L2": 1.0}), cost]) == "k: HBM"


def test_issue_and_load_store_arithmetic():
    machine = model.Machine()
    found = model.issued(made_up(), units=1e9, around=1e6, machine=machine)
    clocks = 132 * 1.98e9
    assert found["issue"] == pytest.approx((1e10 + 1e8) / (4 * 0.7 * clocks))
    assert found["LSU"] == pytest.approx(4e9 / (0.85 * clocks))
    one = model.issued(made_up(tail=30), units=0, around=0, machine=machine, tail=10)
    assert one["issue"] == pytest.approx(300 / (4 * 0.7 * clocks))


def test_bytes_of_a_gather():
    machine = model.Machine()
    graph = degrees.Graph("made up", np.full(1_000_000, 10))
    l2, hbm, kept = model.gathered(graph, 1024, 1024, 4, 0, machine)
    assert kept == pytest.approx((36 << 20) / 1.024e9)
    assert l2 == pytest.approx(1e7 * 1024 + 4e7 + 4e6)
    assert hbm == pytest.approx((1 - kept) * 1e7 * 1024 + 4e7 + 4e6)
    l2, hbm, kept = model.gathered(graph, 1024, 32, 4, 0, machine)  # slices of 32 bytes, which fit
    assert kept == 1 and hbm == pytest.approx(1.024e9 + 32 * (4e7 + 4e6))
    assert [model.rounded(w, machine) for w in (1024, 400, 164)] == [1024, 448, 212]


def test_arithmetic_of_the_peers():
    machine, degree = model.Machine(), np.full(1000, 10)
    with degrees.used("few", degree), degrees.used("many", np.full(1_000_000, 10)):
        of_memory = 0.95 * 4.3e12
        assert cases.cusparse("many", 256)(machine) == pytest.approx((1e7 * 1032 + 1.024e9) / of_memory)
        assert cases.cusparse("few", 256)(machine) == pytest.approx(1e4 * 1032 / (0.95 * 9.7e12))  # fits the L2
    assert cases.cublas(169_343, 256, 256)(machine) == pytest.approx(2 * 169_343 * 65536 / 50e12)
    assert cases.cublas(10**6, 8, 8)(machine) == pytest.approx(4 * 10**6 * 16 / 4.3e12)  # by memory


def test_waiting_for_memory():
    machine = model.Machine()
    seconds = model.waiting(steps=1e6, trips=2, kept=1.0, warps=32, alive=0.5, machine=machine)
    assert seconds == pytest.approx(1e6 * 2 * 250e-9 / (132 * 32 * 0.5))
    assert model.waiting(1e6, 2, 0.0, 32, 0.5, machine) == pytest.approx(seconds * 700 / 250)


def test_a_better_schedule_and_fewer_instructions_predict_less():
    graph, machine = degrees.graph("arxiv"), model.Machine()
    if not shutil.which("c++"):
        pytest.skip("needs a C++ compiler")

    def seconds(**changes):
        return model.reduced("k", made_up(**changes), graph, 256, 4, 4, "spmm.cuh", machine).seconds

    few, many = {"trips": 8}, {"trips": 16}  # enough for latency to be the longest
    assert seconds(facts=few) < seconds(tail=12, facts=few) < seconds(tail=12, facts=many)
    assert seconds(instructions=1000.0) > 10 * seconds(instructions=10.0)


def test_scores_are_made_for_many_edges_at_once():
    graph, machine = degrees.graph("arxiv"), model.Machine()
    if not shutil.which("c++"):
        pytest.skip("needs a C++ compiler")

    def issue(scores):
        found = model.reduced("k", made_up(), graph, 256, 4, 4, "gat.cuh", machine, scores=scores)
        return found.bounds["issue"]

    alone, few, many, reduced = map(issue, (None, *(model.Scores(made_up(), *n) for n in ((4,), (16,), (16, 5.0)))))
    assert alone < many < reduced < few
    assert model.Scores(made_up(instructions=80.0), 16, 16.0).of_edge == 6


def test_idle_lanes_issue_and_load_nothing():
    machine = model.Machine()
    idle, full = (model.sampled("k", made_up(), 1e9, 0, 0, 64, machine, moved) for moved in (5e8, None))
    assert idle.bounds["LSU"] == full.bounds["LSU"] / 2 and idle.bounds["issue"] == full.bounds["issue"]
    stored = model.sampled("k", made_up(facts={"lines": 3, "staged": 1}), 1e9, 0, 1e9, 64, machine)
    assert stored.bounds["LSU"] == pytest.approx(2 * full.bounds["LSU"])  # four clocks of each, as of a unit


# ---- the command


@needs_compiler
def test_the_command_by_the_committed_counts(capsys):
    assert predict.main(["--budget", "--op", "maxk", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["note"] == "Predictions for one H200, not measurements."
    (case,) = content["cases"]
    assert case["case"].startswith("MaxK select") and case["predicted_ms"] > 0 and case["bound"]
    assert predict.main(["--budget", "--op", "spmm", "--graph", "arxiv"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Predictions for one H200, not measurements.")
    assert "spmm sum, arxiv, F = 256" in text and "GAT" not in text.partition("case ")[2] and "predicted ms" in text
    assert all(name in text for name in model.ASSUMED)


def test_wrong_arguments_and_missing_programs(monkeypatch, capsys):
    for arguments in (["--op", "nothing"], ["--graph", "nothing"]):
        with pytest.raises(SystemExit, match="2"):
            predict.main(arguments)
        assert f"unknown {arguments[0][2:]} nothing" in capsys.readouterr().err

    def missing():
        raise cubin.Missing("nvcc is not installed: no kernel can be compiled")

    monkeypatch.setattr(cubin, "nvcc", missing)
    assert predict.main([]) == 2
    assert capsys.readouterr().err == "predict: nvcc is not installed: no kernel can be compiled\n"


def test_other_assumptions(tmp_path):
    path = tmp_path / "assumed.json"
    path.write_text('{"hbm": 1e12}')
    assert predict.machine_of(path)["hbm"] == 1e12 and predict.machine_of(None)["hbm"] == 4.3e12
    path.write_text('{"speed": 1}')
    with pytest.raises(ValueError, match="unknown assumption speed"):
        predict.machine_of(path)


def test_the_budget_is_whole_and_written_as_it_is_kept():
    content = json.loads(counts.BUDGET.read_text())
    assert counts.BUDGET.read_text() == counts.dumps(content)
    for name, c in counts.budgeted().items():
        assert sum(c.of.values()) == pytest.approx(c.instructions, rel=0.01), name
        assert c.instructions > 0 and c.unroll > 0 and c.registers > 0, name


def test_every_number_of_the_readme_is_measured():
    assert "predict.py" not in (ROOT / "README.md").read_text()
    assert len({c.name for c in cases.everything()}) == len(list(cases.everything()))
