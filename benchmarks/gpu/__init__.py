"""Measuring on a GPU: its clock, contenders that are checked before they are timed, tf32, CUDA graphs.

Without a GPU (or with none visible) the same code runs on the CPU, by the clock of the host: that is the dry run.
"""

from gpu.clock import DeviceClock, graphed
from gpu.contest import LONG_SUM, Contest, check, compiled, rotate, sets_of, with_tf32
from gpu.context import DTYPES, assert_alive, clean_up, device, hide, name, on_gpu, randn, tf32

__all__ = [
    "DTYPES", "LONG_SUM", "Contest", "DeviceClock", "assert_alive", "check", "clean_up", "compiled", "device",
    "graphed", "hide", "name", "on_gpu", "randn", "rotate", "sets_of", "tf32", "with_tf32",
]  # fmt: skip
