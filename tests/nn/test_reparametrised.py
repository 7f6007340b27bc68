"""nn.utils.prune, weight_norm, spectral_norm on a sparse layer: dense products with what torch makes, or refused."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from sparsegnn import SET, GradualMagnitude, RigL, use_kernel
from sparsegnn.nn import GCNConv, SparseLinear

HALF = {"amount": 0.5}
RIGHT = {
    "l1": lambda m: prune.l1_unstructured(m, "values", **HALF),
    "random": lambda m: prune.random_unstructured(m, "values", **HALF),
    "identity": lambda m: prune.identity(m, "values"),
    "global": lambda m: prune.global_unstructured([(m, "values")], prune.L1Unstructured, **HALF),
    "mask": lambda m: prune.custom_from_mask(m, "values", torch.arange(m.values.numel()) % 3 > 0),
    "twice": lambda m: prune.l1_unstructured(prune.l1_unstructured(m, "values", **HALF), "values", **HALF),
    "bias": lambda m: prune.l1_unstructured(m, "bias", **HALF),
    "both": lambda m: prune.l1_unstructured(prune.l1_unstructured(m, "bias", **HALF), "values", **HALF),
    "weight_norm": lambda m: nn.utils.weight_norm(m, "values"),
    "spectral_norm": lambda m: nn.utils.spectral_norm(m, "values"),
    "weight_norm of the bias": lambda m: parametrizations.weight_norm(m, "bias"),
    "parametrized bias": lambda m: parametrize.register_parametrization(m, "bias", nn.Softplus()),
    "parametrized": lambda m: parametrize.register_parametrization(m, "values", nn.Tanh()),
    "parametrized twice": lambda m: parametrize.register_parametrization(
        parametrize.register_parametrization(m, "values", nn.Tanh()), "values", nn.Softplus()
    ),
    "parametrized weight_norm": lambda m: parametrizations.weight_norm(m, "values"),
    "parametrized spectral_norm": lambda m: parametrizations.spectral_norm(m, "values"),
}


def layer(kind="unstructured", bias=True, seed=0):
    torch.manual_seed(seed)
    return SparseLinear(32, 32, bias=bias, sparsity=0.5, pattern=kind).double()


def assert_right(mine):
    """Against the dense product with values and bias as torch's hooks leave them, and its gradients."""
    x = torch.randn(5, 32, dtype=torch.float64, requires_grad=True)
    y = mine(x)
    weight = torch.zeros(32, 32, dtype=torch.float64)
    rows = torch.repeat_interleave(torch.arange(mine.crow.numel() - 1), mine.crow.diff().long())
    h, w = mine.block
    for entry, (i, j) in enumerate(zip(rows.tolist(), mine.col.tolist(), strict=True)):
        block = mine.values[entry * h * w : (entry + 1) * h * w].view(h, w)
        weight[i * h : i * h + h, j * w : j * w + w] = block
    want = x @ weight.T + mine.bias
    torch.testing.assert_close(y, want)
    own = [x, *mine.parameters()]
    flow = torch.randn_like(y)
    got, right = (torch.autograd.grad((z * flow).sum(), own, retain_graph=True, allow_unused=True) for z in (y, want))
    for a, b in zip(got, right, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind,kernel", [("unstructured", "sparse"), ("grouped:8", "dense")])
@pytest.mark.parametrize("way", RIGHT)
def test_what_torch_makes_of_values_is_multiplied_by(way, kind, kernel):
    mine = layer(kind)
    RIGHT[way](mine)
    with use_kernel(kernel):
        assert_right(mine)
        mine.float().double()
        assert_right(mine)
        other = layer(kind, seed=1)
        RIGHT[way](other)
        other.load_state_dict(mine.state_dict())
        other.eval(), mine.eval()  # spectral_norm iterates in training
        x = torch.randn(3, 32, dtype=torch.float64)
        torch.testing.assert_close(other(x), mine(x))


@pytest.mark.parametrize("way", ["l1", "bias"])
def test_removed_pruning_leaves_the_layer(way):
    mine = layer()
    RIGHT[way](mine)
    mine(torch.randn(2, 32, dtype=torch.float64)).sum().backward()
    prune.remove(mine, "bias" if way == "bias" else "values")
    assert_right(mine)
    assert_right(copy.deepcopy(mine))
    optimizer = torch.optim.Adam(mine.parameters())
    controller = SET(mine, optimizer, update_every=1)
    mine(torch.randn(2, 32, dtype=torch.float64)).sum().backward()
    optimizer.step()
    assert controller.updates == 1
    assert_right(mine)


def test_a_pruned_convolution():
    torch.manual_seed(0)
    conv, edges = GCNConv(32, 32, sparsity=0.5), torch.tensor([[0, 1, 2], [1, 2, 0]])
    conv.lin.bias = None
    prune.l1_unstructured(conv.lin, "values", 0.5)
    x = torch.randn(3, 32)
    dense = GCNConv(32, 32)
    y = conv(x, edges)
    dense.lin.weight.data, dense.bias.data = conv.lin.dense_weight().detach(), conv.bias.detach()
    torch.testing.assert_close(y, dense(x, edges))


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("cls", [RigL, GradualMagnitude])
@pytest.mark.parametrize("way", ["l1", "weight_norm", "spectral_norm", "parametrized"])
def test_controllers_refuse_values_that_are_made_at_each_call(way, cls, late):
    model = nn.Sequential(layer(), layer(seed=1))
    with pytest.raises(ValueError, match=rf"{cls.__name__}: model must have layers whose values are .* got \['0'\]"):
        if not late:
            RIGHT[way](model[0])
        optimizer = torch.optim.Adam(model.parameters())
        cls(model, optimizer, update_every=1)
        RIGHT[way](model[0])
        model(torch.randn(2, 32, dtype=torch.float64)).sum().backward()
        optimizer.step()


def test_such_values_do_not_move():
    mine = layer()
    prune.identity(mine, "values")
    crow, col = mine.pattern()
    with pytest.raises(RuntimeError, match="values must be a parameter for the weights to move, .* remove that first"):
        mine.set_pattern_(crow, col, mine.values.detach())
    with pytest.raises(RuntimeError, match="values must be a parameter for the weights to move"):
        mine.rewire_(mine.values.detach(), torch.rand(32, 32), 3)
    other = SparseLinear(32, 32, sparsity=0.7).double()
    prune.identity(other, "values")
    with pytest.raises(ValueError, match=r"checkpoint 'values_(orig|mask)' must have shape \[512\], got \[307\]"):
        mine.load_state_dict(other.state_dict())
    assert_right(mine)


def test_a_parametrization_is_saved_copied_and_removed():
    """``parametrizations`` of other modules cannot hold one of ``values``: a method of theirs has that name."""
    mine, x = layer(), torch.randn(3, 32, dtype=torch.float64)
    original = mine.values.detach().clone()
    parametrize.register_parametrization(mine, "values", nn.Tanh())
    torch.testing.assert_close(mine.parametrizations["values"].original.detach(), original)
    other = layer(seed=1)
    parametrize.register_parametrization(other, "values", nn.Tanh())
    other.load_state_dict(mine.state_dict())
    copied = copy.deepcopy(mine)
    for m in (other, copied):
        assert_right(m)
        assert torch.equal(m(x), mine(x))
    assert_right(copied.float().double())
    parametrize.remove_parametrizations(mine, "values")
    torch.testing.assert_close(mine.values.detach(), original.tanh())
    assert_right(mine)


@pytest.mark.parametrize("register", [
    lambda m: parametrizations.orthogonal(m, "values"),
    lambda m: prune.ln_structured(m, "values", 0.3, 2, 0),
    lambda m: prune.l1_unstructured(m, "weight", 0.3),
])  # fmt: skip
def test_what_torch_refuses_itself(register):
    with pytest.raises((KeyError, ValueError, AttributeError, TypeError)):
        register(layer())
