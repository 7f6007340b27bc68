"""No call of an op keeps memory: the heap's bytes in use, which know no noise, are those before the call.

Found in use: torch's own conversion of a string argument (2.10 to 2.13) keeps 48 bytes at every call.
"""

import ctypes
import gc

import pytest
import torch

import sparsegnn

from .test_check import OPS, arguments, op_of

FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
CALLS, WINDOWS = 100, 3


class Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS.split()]


MALLINFO = getattr(ctypes.CDLL(None), "mallinfo2", None)  # glibc 2.33
if MALLINFO is not None:
    MALLINFO.restype = Mallinfo


def heap_in_use() -> int:
    """Bytes that malloc has handed out, of all threads; 0 where it does not tell."""
    if MALLINFO is None:
        return 0
    info = MALLINFO()
    return info.uordblks + info.hblkhd


@pytest.fixture(scope="module")
def in_use():
    if heap_in_use() == 0:
        pytest.skip("needs glibc's mallinfo2")

    def count() -> int:
        gc.collect()
        sparsegnn.empty_cache()
        return heap_in_use()

    return count


def kept(call, in_use) -> float:
    """Bytes per call that stay; the least of several windows, for what is made once is no leak."""
    for _ in range(CALLS):
        call()
    found = []
    for _ in range(WINDOWS):
        before = in_use()
        for _ in range(CALLS):
            call()
        found.append((in_use() - before) / CALLS)
    return min(found)


@pytest.mark.parametrize("name", OPS)
def test_ops(name, in_use):
    given = arguments(name)
    changed = [k for k, v in given.items() if isinstance(v, torch.Tensor)] if name.endswith("_") else []
    fresh = [{k: given[k].clone() for k in changed} for _ in range(2 if changed else 1)]

    def call():
        for k in changed:
            fresh[1][k].copy_(fresh[0][k])
        op_of(name)(**given | fresh[-1])

    assert kept(call, in_use) < 4


def test_a_leak_would_show(in_use):
    kept_for_good = []
    assert kept(lambda: kept_for_good.append(bytes(600)), in_use) > 600
