"""Measuring on a GPU, or on the CPU by the clock of the host: that is the dry run."""

from gpu.contest import (
    DTYPES,
    LONG_SUM,
    Contest,
    DeviceClock,
    assert_alive,
    check,
    clean_up,
    compiled,
    device,
    graphed,
    hide,
    name,
    on_gpu,
    randn,
    rotate,
    sets_of,
    tf32,
    with_tf32,
)

__all__ = [
    "DTYPES", "LONG_SUM", "Contest", "DeviceClock", "assert_alive", "check", "clean_up", "compiled", "device",
    "graphed", "hide", "name", "on_gpu", "randn", "rotate", "sets_of", "tf32", "with_tf32",
]  # fmt: skip
