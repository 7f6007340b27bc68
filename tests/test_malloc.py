"""keep_memory(): the page faults of PyTorch's own outputs, in a process of its own, and their return."""

import json

import fresh
import pytest

import sparsegnn

PROGRAM = """
import json, resource, torch, sparsegnn
from sparsegnn._info import info

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        small, large = torch.ones(6_000_000), torch.ones(20_000_000)  # both sides of glibc's largest limit
        del small, large
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

found = {"default": faults(), "told": sparsegnn.keep_memory(), "info": info()["machine"]["malloc"]}
for _ in range(4):  # small blocks may be in the way of the first large ones
    faults()
found |= {"kept": faults(), "undone": sparsegnn.keep_memory(False), "again": faults()}
found["info after"] = info()["machine"]["malloc"]
print(json.dumps(found))
"""


def test_page_faults():
    found = json.loads(fresh.output(PROGRAM))
    if not found["told"]:
        pytest.skip("not glibc's malloc")
    assert found["default"] > 10_000 and found["kept"] < 100 and found["undone"]
    assert found["again"] > 10_000  # of which those of the first allocation alone are 25,000
    assert (found["info"], found["info after"]) == ("keeps memory", "default")


def test_bad_argument():
    with pytest.raises(TypeError, match="keep_memory: keep must be True or False, got 1"):
        sparsegnn.keep_memory(1)
