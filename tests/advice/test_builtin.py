"""The models of the training run: their step, and the levers that their configuration has."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from sparsegnn import data
from sparsegnn.advice import levers
from sparsegnn.advice.builtin import problem_of
from sparsegnn.advice.levers import LeftOut, Option, make
from sparsegnn.advice.parts import StepMeter
from sparsegnn.advice.work import Candidate, Stopwatch
from sparsegnn.experiments.config import MODELS, TrainConfig
from sparsegnn.nn import MaxK, SparseLinear

pytest.importorskip("sklearn")


def config_of(model, **options):
    return TrainConfig(model=model, hidden=32, heads=1 if model == "gat" else 8, dropout=0.0, **options)


def metered(candidate):
    candidate.step()
    meter = StepMeter(candidate, Stopwatch(candidate.device))
    with meter:
        candidate.step(meter.optimizing)
    return meter


@pytest.mark.parametrize("model", MODELS)
def test_every_model_with_every_lever(model):
    problem = problem_of(config_of(model), data.load("digits"))
    given = Candidate(problem, problem.model)
    used = metered(given).layers
    assert {x.name for x in used} == set(levers.linears(given.model)) and all(x.calls for x in used)
    made = {
        option: make(problem, option, used)
        for option in (Option(0.8), Option(0.9, "grouped:8"), Option(maxk=16), Option(0.9, maxk=16), Option(width=0.5),
                       Option(0.9, bf16=True), Option(bf16=True))
    }  # fmt: skip
    dense = levers.weights_of(given.model)
    for option, candidate in made.items():
        seen = metered(candidate)
        weights = levers.weights_of(candidate.model)
        sparse = [m for m in candidate.model.modules() if isinstance(m, SparseLinear)]
        assert bool(sparse) == bool(option.sparsity)
        assert any(isinstance(m, MaxK) for m in candidate.model.modules()) == bool(option.maxk)
        assert weights < 0.6 * dense if option.sparsity or option.width != 1 else weights == dense
        assert seen.seconds["optimizer"] > 0


@pytest.mark.parametrize("model", ["gcn", "mlp"])
def test_the_loss_is_that_of_the_run(model):
    graph = data.load("digits")
    problem = problem_of(config_of(model), graph)
    problem.model.eval()
    with torch.no_grad():
        nodes = graph.train_mask.nonzero().view(-1)
        if model == "mlp":
            logits = problem.model(graph.x[nodes])
        else:
            from sparsegnn import CSRGraph

            logits = problem.model(graph.x, CSRGraph.from_edge_index(graph.edge_index, graph.num_nodes))[nodes]
        want = F.cross_entropy(logits.double(), graph.y[nodes])
        assert problem.loss(problem.model).item() == pytest.approx(want.item(), rel=1e-5)
        assert problem.loss_in_bf16(problem.model).item() == pytest.approx(want.item(), rel=2e-2)


def test_levers_that_a_run_has_already_are_left_out():
    config, graph = config_of("gcn", maxk=16, dtype="bfloat16"), data.load("digits")
    problem = problem_of(config, graph)
    for option in (Option(maxk=16), Option(bf16=True)):
        with pytest.raises(ValueError, match="as it is"):
            make(problem, option, ()).forward()
    assert any(isinstance(m, MaxK) for m in make(problem, Option(width=0.5), ()).model.modules())
    with pytest.raises(LeftOut, match="MaxK keeps at least 16 features, which of 24"):
        levers.maxk_of(problem_of(dataclasses.replace(config_of("gcn"), hidden=24), graph))
