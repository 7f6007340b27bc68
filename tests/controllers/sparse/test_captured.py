"""Recorded and replayed steps are those of the plain loop, for methods that count and for those that resize."""

import io

import pytest
import torch
from tape import TapeGraphs
from torch import nn
from torch.nn import functional as F

from sparsegnn import CapturedStep
from sparsegnn.controllers import DSTEE, ITOP, MEST, Freeze, GraNet, SRigL
from sparsegnn.nn import SparseLinear

CLOCK = {"update_every": 3, "stop_at": 16}
CASES = {
    "itop": (ITOP, {}, 0.75),
    "dst-ee": (DSTEE, {"c": 0.02, "decay": 0.5, "decay_every": 6}, 0.75),
    "mest": (MEST, {}, 0.75),
    "mest-soft": (MEST, {"soft": True}, 0.75),
    "srigl": (SRigL, {"gamma_sal": 0.6, "drop_fraction": 0.5}, 0.75),
    "granet": (GraNet, {}, 0.0),
    "freeze": (Freeze, {"freeze_at": [10]}, 0.75),
}


def run(case, captured):
    torch.manual_seed(0)
    cls, settings, sparsity = CASES[case]
    kind = "fan_in" if cls is SRigL else "unstructured"
    layers = [SparseLinear(k, m, sparsity=sparsity, pattern=kind) for k, m in ((32, 24), (24, 24), (24, 8))]
    model = nn.Sequential(layers[0], nn.Dropout(0.2), layers[1], nn.ReLU(), layers[2])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    method = cls(model, optimizer, **CLOCK, **settings)
    x, y = torch.randn(40, 32), torch.randn(40, 8)

    def step():
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    graphs = TapeGraphs()
    make = CapturedStep(step, optimizer, graphs=graphs) if captured else step
    losses = [make().item() for _ in range(20)]
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), method.state_dict()], file)
    file.seek(0)
    return losses, torch.utils._pytree.tree_leaves(torch.load(file)), graphs, method


@pytest.mark.parametrize("case", CASES)
def test_replays_are_the_plain_loop(case):
    losses, state, _, _ = run(case, False)
    got, other, graphs, method = run(case, True)
    assert got == losses and len(set(losses)) == 20
    assert all(torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in zip(state, other, strict=True))
    assert graphs.replayed > 4 and method.updates >= 5


def test_gradients_of_every_step_cannot_be_replayed():
    layer = SparseLinear(8, 8)
    optimizer = torch.optim.Adam(layer.parameters(), fused=True)
    MEST(layer, optimizer, lam=0.5)
    with pytest.raises(ValueError, match="no controller that acts at every step"):
        CapturedStep(lambda: layer(torch.ones(1, 8)).sum(), optimizer, graphs=TapeGraphs())
