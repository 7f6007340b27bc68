"""Faults planted in the PTX of shipped kernels: the tests of their ops see each; without it they pass."""

import contextlib
import re
from typing import NamedTuple

import numpy as np
import pytest
from csrc.conftest import Csr, Dtype

from csrc import test_act_dropout, test_block_linear, test_csr, test_maxk, test_topology

from .conftest import ptx_of

pytestmark = pytest.mark.deep
FLOAT = Dtype("float32")
MATRICES = "block_linear_kernelINS0_10BlockMmaOpIfLi32E"


@contextlib.contextmanager
def planted(module, op: str, kernel: str, old: str, new: str):
    """The first `old` in the first kernel of that name that has one becomes `new`."""
    text = ptx_of(op)
    entries = re.finditer(rf"\.entry \w*{kernel}.*?\n}}\n", text, re.S)
    place = next((place for entry in entries if (place := re.compile(old).search(text, *entry.span()))), None)
    assert place, f"{kernel} of {op} has no {old}"
    module.ptx_load(text[: place.start()] + place.expand(new) + text[place.end() :])
    try:
        yield
    finally:
        module.ptx_load(text)


class Fault(NamedTuple):
    op: str
    kernel: str
    old: str
    new: str
    said: str  # by the machine; "" where the values are wrong
    case: object


def from_edges(machine):
    test_csr.test_from_edges(machine, 300, 7, 9000, np.int64)


def degrees(machine):
    test_csr.test_degrees(machine, Csr([3, 0, 40], 9), FLOAT)


def matrices(machine):
    weight = test_block_linear.Weight(3, 2, 32, 32)
    test_block_linear.check(machine, FLOAT, weight, 40, tf32=True)


def activations(machine):
    test_act_dropout.test_forward_and_backward(machine, FLOAT, (40, 64), "relu", 0.0)


def selection(machine):
    test_maxk.test_choice(machine, FLOAT, (256, 32, 0), "normal")


FAULTS = {
    "a barrier of the block is missing": Fault(
        "csr", "csr_scan_kernel", r"bar\.sync\s+0;", "", "race between", from_edges),
    "a barrier of a warp is missing": Fault(
        "maxk", "maxk_select_kernelIfhLi4ELi32ELi8E", r"bar\.warp\.sync\s+-1;", "", "race between lanes of a warp",
        selection),
    "a mask is too narrow": Fault(
        "csr", "csr_scan_kernel", r"(shfl\.sync\.up\.b32[^;]*), %r\d+;", r"\1, 65535;",
        "the mask of a warp intrinsic lacks the caller", from_edges),
    "a lane reads of another one": Fault(
        "csr", "csr_degrees_kernelIf", r"shfl\.sync\.bfly", "shfl.sync.up", "", degrees),
    "a barrier is not met by all": Fault(
        "csr", "csr_scan_kernel", r"bar\.sync\s+0;", "@%p16 bar.sync 0;", "race between|divergent barrier", from_edges),
    "operands of a matrix product are exchanged": Fault(
        "block_linear", MATRICES, r"(mma\.sync\.[^{]*\{[^}]*\}, )\{(%r\d+), (%r\d+), ", r"\1{\3, \2, ", "", matrices),
    "the factors of a matrix product are exchanged": Fault(
        "block_linear", MATRICES, r"(mma\.sync[^;]*\}, )\{(%r\d+), (%r\d+)\}(, \{%f)", r"\1{\3, \2}\4", "",
        matrices),
    "a bound is one too far": Fault(
        "csr", "csr_gather_kernel", r"setp\.ge\.s64", "setp.gt.s64", "36000 bytes after the begin",
        from_edges),
    "a vector is read one number too late": Fault(
        "act_dropout", "act_dropout_kernelIfLi4ELNS0_10ActivationE1E", r"(ld\.global\.nc\.v4\.u32[^;\]]*)\]", r"\1+4]",
        "misaligned: needs 16 bytes", activations),
    "shared memory is too small": Fault(
        "csr", "csr_count_kernel", r"st\.shared\.u32(\s+)\[(%r\d+)\]", r"st.shared.u32\1[\2+65536]",
        "after the begin of shared memory", from_edges),
    "an atomic update is none": Fault(
        "topology", "topology_mark_kernel", r"atom\.global\.max\.s32\s+%r\d+, (\[[^;]*);", r"st.global.u32 \1;",
        "race between lanes of a warp", test_topology.test_bad_patterns_do_not_leave_their_arrays),
    "memory that is written is read as if it were constant": Fault(
        "csr", "csr_scan_kernel", r"(nounroll\";\s+)ld\.global\.u32", r"\1ld.global.nc.u32",
        "race between blocks", from_edges),
    "an opcode is not known": Fault(
        "csr", "csr_gather_kernel", r"mul\.wide\.s32", "mul.wider.s32", r"opcode mul: unknown", from_edges),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_seen(machine, name):
    fault = FAULTS[name]
    fault.case(machine)
    with planted(machine, *fault[:4]), pytest.raises((AssertionError, RuntimeError, ValueError)) as error:
        fault.case(machine)
    machine_said = not isinstance(error.value, AssertionError)
    assert machine_said == bool(fault.said) and re.search(fault.said, str(error.value)), str(error.value)
    fault.case(machine)
