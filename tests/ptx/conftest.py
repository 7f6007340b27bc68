"""The PTX machine as a module; its tests are deep, and need nvcc to have made the PTX (`make build-ptx`)."""

import os
import shutil

import pytest
from csrc.conftest import CUDA_BUILD, load

from .names import kernels

NAME = "sparsegnn_ptx"
ORDERS = ("forward", "reversed", "shuffled")


def check_built() -> None:
    """Skips where the module is not there; where nvcc is, and in a strict run, it must be."""
    if list((CUDA_BUILD / NAME).glob("*.so")):
        return
    if os.environ.get("SPARSEGNN_STRICT") == "1" and shutil.which("nvcc"):
        pytest.fail(f"{CUDA_BUILD / NAME} has no module; build it with `make build-ptx`")
    pytest.skip("needs nvcc and `make build-ptx`")


@pytest.fixture(scope="session")
def module():
    check_built()
    return load(NAME)


@pytest.fixture(params=ORDERS)
def machine(request, module):
    """The machine with its threads in one of three orders."""
    module.set_schedule(request.param, 1)
    return module


def shipped() -> set[str]:
    """The kernels of every op, as nvcc names them."""
    return {name for path in (CUDA_BUILD / "ptxas").glob("*.ptx") for name in kernels(path.read_text())}


def ptx_of(op: str) -> str:
    """What nvcc made of csrc/cuda/<op>.cu."""
    return (CUDA_BUILD / "ptxas" / f"{op}.ptx").read_text()


def kernel(body: str, parameters: int = 1, name: str = "hand_made") -> str:
    """PTX of a kernel whose parameters are 64 bits wide each: %rd0, %rd1, ... hold them."""
    declared = ",\n".join(f".param .u64 {name}_param_{i}" for i in range(parameters))
    loads = "\n".join(f"ld.param.u64 %rd{i}, [{name}_param_{i}];" for i in range(parameters))
    return f"""
.version 9.0
.target sm_90
.address_size 64
.extern .shared .align 16 .b8 bytes[];
.visible .entry {name}(
{declared}
)
{{
.reg .pred %p<10>;
.reg .b16 %rs<40>;
.reg .b32 %r<40>;
.reg .b64 %rd<40>;
{loads}
{body}
ret;
}}
"""
