"""Warps, memory and races, on hand-made PTX: what CUDA orders is not accused, what it does not order is."""

import re

import numpy as np
import pytest

from .conftest import kernel

pytestmark = pytest.mark.deep
#: %r1 the thread, %rd2 the address of its number in the first array
MINE = "mov.u32 %r1, %tid.x; mad.wide.u32 %rd2, %r1, 4, %rd0;"


def run(machine, body, *arrays, grid=1, block=64, shared=0):
    machine.ptx_load(kernel(body, len(arrays)))
    return machine.ptx_run("hand_made", list(arrays), [grid], [block], shared)


def said(machine, body, *arrays, **how) -> str:
    with pytest.raises(RuntimeError) as error:
        run(machine, body, *arrays, **how)
    assert "hand_made" in str(error.value)
    return str(error.value)


def neighbour(barrier: str, distance: int) -> str:
    """Every thread writes shared memory and reads what another wrote: `distance` threads on, in blocks of 64."""
    return f"""{MINE}
        shl.b32 %r2, %r1, 2; st.shared.u32 [%r2], %r1; {barrier}
        add.u32 %r3, %r1, {distance}; and.b32 %r3, %r3, 63; shl.b32 %r3, %r3, 2;
        ld.shared.u32 %r4, [%r3]; st.global.u32 [%rd2], %r4;"""


@pytest.mark.parametrize("barrier, distance, wrong", [
    ("bar.sync 0;", 33, None),
    ("bar.sync 0;", 1, None),
    ("bar.warp.sync -1;", 0, None),
    ("", 0, None),
    ("", 1, "race between lanes of a warp"),
    ("bar.warp.sync -1;", 32, "race between warps"),
    ("shfl.sync.idx.b32 %r9, %r1, 0, 31, -1;", 1, "race between lanes of a warp"),  # which orders no memory
    ("vote.sync.ballot.b32 %r9, %p1, -1;", 1, "race between lanes of a warp"),
])  # fmt: skip
def test_what_a_barrier_orders(machine, barrier, distance, wrong):
    out = np.zeros(64, np.int32)
    body = "setp.eq.u32 %p1, 0, 0;" + neighbour(barrier, distance)
    if wrong is None:
        np.testing.assert_array_equal(run(machine, body, out, shared=256)[0], (np.arange(64) + distance) % 64)
    else:
        assert wrong in said(machine, body, out, shared=256)


def test_a_barrier_of_some_lanes_orders_these(machine):
    """Lanes 4 k to 4 k + 3 meet under a mask of their own: ordered among each other, not with the next four."""

    def body(distance):
        return f"""{MINE}
            shr.u32 %r5, %r1, 2; shl.b32 %r5, %r5, 2; and.b32 %r5, %r5, 31; shl.b32 %r6, 15, %r5;
            shl.b32 %r2, %r1, 2; st.shared.u32 [%r2], %r1; bar.warp.sync %r6;
            xor.b32 %r3, %r1, {distance}; shl.b32 %r3, %r3, 2; ld.shared.u32 %r4, [%r3]; st.global.u32 [%rd2], %r4;"""

    out = np.zeros(64, np.int32)
    for distance in (1, 2, 3):
        np.testing.assert_array_equal(run(machine, body(distance), out, shared=256)[0], np.arange(64) ^ distance)
    assert "race between lanes of a warp" in said(machine, body(4), out, shared=256)


def test_order_is_passed_on(machine):
    """Lane 0 and lane 1 meet, then lane 1 and lane 2: what lane 0 wrote before is there for lane 2, not for lane 3."""

    def body(reader):
        return f"""{MINE}
            setp.ne.u32 %p1, %r1, 0; setp.ne.u32 %p2, %r1, 1; setp.ne.u32 %p3, %r1, 2; setp.ne.u32 %p4, %r1, {reader};
            @!%p1 st.shared.u32 [bytes], 7;
            and.pred %p5, %p1, %p2; @!%p5 bar.warp.sync 3;
            and.pred %p6, %p2, %p3; @!%p6 bar.warp.sync 6;
            @!%p4 ld.shared.u32 %r4, [bytes]; @!%p4 st.global.u32 [%rd0], %r4;"""

    out = np.zeros(32, np.int32)
    assert run(machine, body(2), out, block=32, shared=256)[0][0] == 7
    assert "race between lanes of a warp" in said(machine, body(3), out, block=32, shared=256)


@pytest.mark.parametrize("first, second, wrong", [
    ("st.global.u32 [%rd0], %r1;", "", "race between"),  # all threads write one number
    ("ld.global.u32 %r4, [%rd0];", "ld.global.u32 %r4, [%rd0];", None),
    ("atom.global.add.u32 %r4, [%rd0], 1;", "atom.global.max.u32 %r4, [%rd0], 1;", None),
    ("atom.global.add.u32 %r4, [%rd0], 1;", "ld.global.u32 %r4, [%rd0];", "race between"),
    ("ld.global.u32 %r4, [%rd0];", "red.global.add.u32 [%rd0], 1;", "race between"),
    ("ld.global.nc.u32 %r4, [%rd2];", "st.global.u32 [%rd2], %r1;", "race between"),  # its own, but not coherent
    ("st.global.u32 [%rd2], %r1;", "ld.global.nc.u32 %r4, [%rd2];", "race between"),
    ("ld.global.u32 %r4, [%rd2];", "st.global.u32 [%rd2], %r1;", None),
])  # fmt: skip
def test_global_memory(machine, first, second, wrong):
    body, out = f"{MINE} {first} {second}", np.zeros(64, np.int32)
    if wrong is None:
        run(machine, body, out)
    else:
        assert wrong in said(machine, body, out)


def test_blocks_are_ordered_by_nothing(machine):
    """What a block reads no other writes, not even behind a barrier; the next launch may."""
    read_all = f"{MINE} ld.global.u32 %r4, [%rd2]; bar.sync 0;"
    last = "mov.u32 %r5, %ctaid.x; setp.ne.u32 %p1, %r5, 3; @!%p1 st.global.u32 [%rd2], %r1;"
    out = np.zeros(64, np.int32)
    assert "race between blocks" in said(machine, read_all + last, out, grid=4)
    run(machine, read_all + last, out, grid=1)
    run(machine, read_all, out, grid=4)


def test_small_and_large_accesses_meet(machine):
    """Bytes of one word are different memory; a word and one of its bytes are not."""
    out = np.zeros(64, np.uint8)
    byte = "mov.u32 %r1, %tid.x; cvt.u64.u32 %rd2, %r1; add.s64 %rd2, %rd2, %rd0; cvt.u16.u32 %rs1, %r1;"
    got = run(machine, f"{byte} st.global.u8 [%rd2], %rs1;", out)[0]
    np.testing.assert_array_equal(got, np.arange(64))
    word = "and.b64 %rd3, %rd2, -4; ld.global.u32 %r4, [%rd3];"
    assert "race between" in said(machine, f"{byte} st.global.u8 [%rd2], %rs1; {word}", out)


@pytest.mark.parametrize("statement, wrong", [
    ("ld.global.u32 %r4, [%rd2+256];", "out of bounds: 4 bytes, (256|384) bytes after the begin of an array of 256;"),
    ("ld.global.u32 %r4, [%rd2+-4];", "out of bounds: 4 bytes"),
    ("ld.global.v2.u32 {%r4, %r5}, [%rd2];", "misaligned: needs 8 bytes"),
    ("ld.global.u32 %r4, [%rd2+2];", "misaligned: needs 4 bytes"),
    ("st.shared.u32 [%r1+128], 0;", "(128|192) bytes after the begin of shared memory of 128;"),
    ("cvta.shared.u64 %rd3, 0; ld.global.u32 %r4, [%rd3];", "by an access to global memory"),
    ("ld.param.u64 %rd3, [hand_made_param_0+4];", "out of the bounds of a parameter"),
    ("bra $L; $L: bra $L;", "the kernel does not end"),
])  # fmt: skip
def test_accesses_that_are_wrong(machine, statement, wrong):
    body = statement if "$L" not in statement else "$L: bra $L;"
    assert re.search(wrong, said(machine, f"{MINE} mul.lo.u32 %r1, %r1, 2; {body}", np.zeros(64, np.int32), shared=128))


def test_shared_memory_by_its_generic_address(machine):
    body = f"{MINE} shl.b32 %r2, %r1, 2; cvt.u64.u32 %rd3, %r2; cvta.shared.u64 %rd4, %rd3; st.u32 [%rd4], %r1;"
    body += "cvta.to.shared.u64 %rd5, %rd4; ld.shared.u32 %r4, [%rd5]; st.global.u32 [%rd2], %r4;"
    np.testing.assert_array_equal(run(machine, body, np.zeros(64, np.int32), shared=256)[0], np.arange(64))


@pytest.mark.parametrize("body, wrong", [
    ("@%p1 bar.sync 0;", r"divergent barrier in block \(0, 0, 0\): 32 .*__syncthreads, 0 at a .*, 32 have returned"),
    ("@%p1 ret; bar.sync 0;", "32 thread.s. wait at __syncthreads, 0 at a warp intrinsic, 32 have returned"),
    ("@%p1 shfl.sync.idx.b32 %r3, %r1, 0, 31, 0x55555555;", "the mask of a warp intrinsic lacks the caller"),
    ("@%p1 bar.sync 0; @!%p1 bar.warp.sync -1;", "32 .* at __syncthreads, 32 at a warp intrinsic, 0 have returned"),
    ("@%p1 vote.sync.ballot.b32 %r3, %p1, -1; @!%p1 bar.warp.sync -1;", "0 .* at __syncthreads, 64 at a warp"),
])  # fmt: skip
def test_divergence_is_an_error(machine, body, wrong):
    odd = f"{MINE} and.b32 %r2, %r1, 1; setp.eq.u32 %p1, %r2, 1;"
    with pytest.raises(RuntimeError, match=wrong):
        run(machine, odd + body, np.zeros(64, np.int32))


def test_tensor_cores_need_all_lanes(machine):
    body = f"{MINE} setp.lt.u32 %p1, %r1, 3; @%p1 ret;"
    body += "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%r2,%r3,%r4,%r5}, {%r6,%r7,%r8,%r9}, {%r10,%r11}, "
    assert "lacks lanes" in said(machine, body + "{%r2,%r3,%r4,%r5};", np.zeros(64, np.int32))


def test_parted_lanes_meet_again(machine):
    """Every lane loops as its number says; then all shuffle, and those that have returned are not waited for."""
    body = f"""{MINE} mov.u32 %r2, 0;
        $L: setp.ge.u32 %p1, %r2, %r1; @%p1 bra $M; add.u32 %r2, %r2, 1; bra $L;
        $M: setp.gt.u32 %p2, %r1, 20; @%p2 ret;
        shfl.sync.idx.b32 %r3, %r2, 5, 31, -1; add.u32 %r4, %r3, %r2; st.global.u32 [%rd2], %r4;"""
    got = run(machine, body, np.zeros(32, np.int32), block=32)[0]
    np.testing.assert_array_equal(got, np.where(np.arange(32) > 20, 0, 5 + np.arange(32)))


def test_what_shuffles_read_of_nobody(machine):
    body = (
        f"{MINE} setp.eq.u32 %p2, %r1, 7; @%p2 ret; shfl.sync.idx.b32 %r3, %r1, 7, 31, -1; st.global.u32 [%rd2], %r3;"
    )
    got = run(machine, body, np.zeros(32, np.uint32), block=32)[0]
    assert set(np.delete(got, 7)) == {0xCBCBCBCB}


def test_indices_of_threads_and_blocks(machine):
    body = """mov.u32 %r1, %tid.x; mov.u32 %r2, %tid.y; mov.u32 %r3, %ntid.x; mad.lo.u32 %r4, %r2, %r3, %r1;
        mov.u32 %r5, %ctaid.y; mov.u32 %r6, %nctaid.x; mov.u32 %r7, %ctaid.x; mad.lo.u32 %r8, %r5, %r6, %r7;
        mov.u32 %r9, %ntid.y; mul.lo.u32 %r10, %r3, %r9; mad.lo.u32 %r11, %r8, %r10, %r4; mov.u32 %r12, %laneid;
        mad.wide.u32 %rd2, %r11, 4, %rd0; mad.lo.u32 %r13, %r11, 100, %r12; st.global.u32 [%rd2], %r13;"""
    machine.ptx_load(kernel(body, 1))
    got = machine.ptx_run("hand_made", [np.zeros(240, np.int32)], [2, 3], [8, 5])[0]
    np.testing.assert_array_equal(got, np.arange(240) * 100 + np.arange(240) % 40 % 32)


def test_launches_that_do_not_fit_the_kernel(machine):
    text = kernel("", 1).replace("\n{\n", "\n.maxntid 64, 1, 1\n{\n")
    machine.ptx_load(text)
    one = np.zeros(1)
    with pytest.raises(RuntimeError, match="65 threads a block, compiled for at most 64"):
        machine.ptx_run("hand_made", [one], [1], [65])
    with pytest.raises(RuntimeError, match="other parameters"):
        machine.ptx_run("hand_made", [one, one])
    with pytest.raises(RuntimeError, match="parameter 0 has 8 bytes, got 4"):
        machine.ptx_run("hand_made", [np.array(1, np.int32)])
    with pytest.raises(ValueError, match="no PTX of kernel nobody is loaded"):
        machine.ptx_run("nobody", [])
