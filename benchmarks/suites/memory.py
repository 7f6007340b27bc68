"""Peak memory of one training step above its inputs: ``python suites/memory.py GAT|GCN CONTENDER`` prints bytes.

A process of its own, so that nothing that ran before lies about what the step needs. A step on a small graph first
loads the code.
"""

import sys
from pathlib import Path

import torch

if not __package__:  # run by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import runner  # noqa: E402

from sparsegnn.experiments.measure import PeakMemory  # noqa: E402

CASES = {
    "GAT": ("gat", dict(inputs=128, heads=8, width=8, train=True)),
    "GCN": ("gcn_step", dict(hidden=256, sparsity=0.9)),
}
NAMES = {("GCN", "PyG SparseTensor"): "PyG torch_sparse"}


def main(layer: str, contender: str) -> int:
    op, case = CASES[layer]
    bench, name = runner.load(op), NAMES.get((layer, contender), contender)

    def make(**size):
        case_now = dict(**case, **size)
        if name == "sparsegnn":
            return bench.ours(case_now)
        found = bench.baselines(case_now)
        return found[name]

    make(nodes=2000, edges=20_000)()
    step = make(nodes=170_000, edges=2_300_000)
    memory = PeakMemory(torch.device("cpu"))
    step()
    return memory.peak() - memory.start


if __name__ == "__main__":
    torch.set_num_threads(2)
    print(main(*sys.argv[1:]))
