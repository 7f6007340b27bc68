"""cuSPARSE's SpMM as it is: every algorithm for CSR, descriptors made and preprocessing done once, int32 indices.

The library that torch has loaded, through ctypes. torch itself takes algorithm 2 without preprocessing.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import torch

ALGORITHMS = {"ALG1": 4, "ALG2": 6, "ALG3": 12}  # cusparseSpMMAlg_t: CUSPARSE_SPMM_CSR_ALG1, 2, 3
TYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 14}  # cudaDataType
INT32, BASE_ZERO, ROW_MAJOR, AS_IT_IS = 2, 0, 2, 0
NAMES = ("libcusparse.so.12", "libcusparse.so.13", "libcusparse.so")

_i64, _int, _pointer = ctypes.c_int64, ctypes.c_int, ctypes.c_void_p


@functools.cache
def library() -> ctypes.CDLL:
    for name in NAMES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise RuntimeError(f"cuSPARSE is not there: {', '.join(NAMES)}")


@functools.cache
def handle() -> ctypes.c_void_p:
    made = _pointer()
    call("cusparseCreate", ctypes.byref(made))
    return made


def call(name: str, *arguments) -> None:
    status = getattr(library(), name)(*arguments)
    if status != 0:
        raise RuntimeError(f"{name} returned {status}")


class SpMM:
    """``y = A x`` for ``A`` [M, N] in CSR; a call writes to the same ``y`` [M, K] every time."""

    def __init__(self, crow: torch.Tensor, col: torch.Tensor, val: torch.Tensor, x: torch.Tensor, algorithm: str):
        m, n, k = crow.numel() - 1, x.size(0), x.size(1)
        self.y = x.new_empty(m, k)
        self.alive = (crow, col, val, x)  # the descriptors hold their addresses
        self.a, self.b, self.c = _pointer(), _pointer(), _pointer()
        kind = _int(TYPES[x.dtype])
        places = [_pointer(t.data_ptr()) for t in (crow, col, val)]
        call("cusparseCreateCsr", ctypes.byref(self.a), _i64(m), _i64(n), _i64(col.numel()), *places,
             _int(INT32), _int(INT32), _int(BASE_ZERO), kind)  # fmt: skip
        for matrix, t in ((self.b, x), (self.c, self.y)):
            call("cusparseCreateDnMat", ctypes.byref(matrix), _i64(t.size(0)), _i64(k), _i64(k),
                 _pointer(t.data_ptr()), kind, _int(ROW_MAJOR))  # fmt: skip
        scalar = ctypes.c_double if x.dtype == torch.float64 else ctypes.c_float
        self.one, self.zero = scalar(1), scalar(0)
        compute = _int(TYPES[torch.float64 if x.dtype == torch.float64 else torch.float32])
        self.arguments = (handle(), _int(AS_IT_IS), _int(AS_IT_IS), ctypes.byref(self.one), self.a, self.b,
                          ctypes.byref(self.zero), self.c, compute, _int(ALGORITHMS[algorithm]))  # fmt: skip
        size = ctypes.c_size_t()
        self._stream()
        call("cusparseSpMM_bufferSize", *self.arguments, ctypes.byref(size))
        self.buffer = torch.empty(max(size.value, 16), dtype=torch.uint8, device=x.device)
        self.arguments += (_pointer(self.buffer.data_ptr()),)
        call("cusparseSpMM_preprocess", *self.arguments)

    def __call__(self) -> torch.Tensor:
        self._stream()
        call("cusparseSpMM", *self.arguments)
        return self.y

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """Of another ``x`` of the same shape; the result is new."""
        x, self.y = x.contiguous(), self.y.new_empty(self.y.shape)
        for matrix, t in ((self.b, x), (self.c, self.y)):
            call("cusparseDnMatSetValues", matrix, _pointer(t.data_ptr()))
        return self()

    def _stream(self) -> None:
        stream = torch.cuda.current_stream(self.y.device).cuda_stream if self.y.is_cuda else 0
        call("cusparseSetStream", handle(), _pointer(stream))

    def __del__(self):
        for name, matrix in (
            ("cusparseDestroySpMat", "a"),
            ("cusparseDestroyDnMat", "b"),
            ("cusparseDestroyDnMat", "c"),
        ):
            if getattr(self, matrix, None):
                getattr(library(), name)(getattr(self, matrix))


def through_torch(crow: torch.Tensor, col: torch.Tensor, val: torch.Tensor, x: torch.Tensor) -> Callable:
    a = torch.sparse_csr_tensor(crow, col, val, (crow.numel() - 1, x.size(0)))
    return lambda: torch.sparse.mm(a, x)


def contenders(crow: torch.Tensor, col: torch.Tensor, val: torch.Tensor, x: torch.Tensor) -> dict[str, Callable]:
    """What makes each way to multiply, by name: ``torch.sparse.mm`` and the algorithms."""
    make = {"torch.sparse.mm": lambda: through_torch(crow, col, val, x)}
    for name in ALGORITHMS:
        make[f"cuSPARSE {name}"] = lambda name=name: SpMM(crow, col, val, x, name)
    return make


NAMES_OF_ALL = ("torch.sparse.mm", *(f"cuSPARSE {name}" for name in ALGORITHMS))
