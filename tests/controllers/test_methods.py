"""What all methods of the registry promise: the loop, counts, memory, optimizers, checkpoints, ranks, copies."""

import gc
from functools import partial

import pytest
import torch
import torch.distributed as dist
from controllers.methods import (
    EXCUSED,
    NODES,
    SETTINGS,
    SPARSITY,
    WEIGHTS,
    at_places,
    differences,
    make,
    methods,
    plain,
    saved,
    trace,
)
from torch import nn, optim

from sparsegnn.controllers import METHODS, registry
from sparsegnn.nn.copies import checksum

FEW = 20  # steps of a run
AT = (1, 5, 9, 14)  # steps of checkpoints


def test_the_table_of_the_excused():
    assert all(reason and promise for promise, names in EXCUSED.items() for reason in names.values())


# --- the loop, counts, memory ----------------------------------------------------------------------------------------


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", methods("counts"))
def test_counts_are_exact_and_change_at_updates_only(name):
    t = trace(name)
    assert t.run.controller.step == 40 and t.run.output().isfinite().all()
    before = t.start
    for step, now in enumerate(t.counts):
        assert now == before or (t.acts(step) and not METHODS[name].keeps_size), step
        assert all(now.values()), step
        before = now


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", methods("sparsity"))
def test_the_run_ends_with_the_sparsity_that_was_asked_for(name):
    run = trace(name).run.copy()
    run.model = run.controller.finalize()
    kept, size, layers = sum(run.counts().values()), sum(WEIGHTS), run.layers().values()
    # rounded once in each layer, or for each of its outputs
    rounding = sum(m.out_features / 2 if m.structure == "fan_in" else 0.5 for m in layers)
    assert abs(kept - (1 - SPARSITY) * size) <= rounding
    assert all(run.counts().values())


@pytest.mark.parametrize("name", methods("storage"))
def test_nothing_is_reallocated_while_the_count_is_constant(name):
    t = trace(name)
    keeps = METHODS[name].keeps_size
    for step in range(1, 40):
        if keeps or not t.acts(step):
            assert t.places[step] == t.places[step - 1], step + 1


@pytest.mark.parametrize("name", methods("allocations"))
def test_no_dense_weight_is_made_where_no_dense_gradient_is_needed(name):
    t, need = trace(name), METHODS[name].dense_gradient_need
    watched = [
        step
        for step in range(40)
        if t.phases[step] != "dense" and (need == "never" or (need == "at updates" and not t.due[step]))
    ]
    assert {step + 1: t.made[step] for step in watched if t.made[step]} == {}
    assert watched or need == "every step" or "weights" not in METHODS[name].target


# --- optimizers ------------------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "momentum fused": partial(optim.SGD, lr=0.1, momentum=0.9, fused=True),
    "nesterov foreach": partial(optim.SGD, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "adam": partial(optim.Adam, lr=0.02, foreach=False),
    "adam fused": partial(optim.Adam, lr=0.02, fused=True),
    "adamw foreach": partial(optim.AdamW, lr=0.02, amsgrad=True, foreach=True),
    "rmsprop": partial(optim.RMSprop, lr=0.01, momentum=0.9, centered=True),
    "adagrad fused": partial(optim.Adagrad, lr=0.05, initial_accumulator_value=0.25, fused=True),
    "nadam foreach": partial(optim.NAdam, lr=0.02, foreach=True),
}
START = {"adagrad fused": {"sum": 0.25}}  # of a new weight; else 0


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", methods("optimizers"))
def test_state_goes_where_the_weights_go(name, kind):
    before = {}

    def held():
        layers = {n: m for n, m in run.layers().items() if m.values.requires_grad and m.block == (1, 1)}
        state = {n: run.optimizer.state.get(m.values, {}) for n, m in layers.items()}
        return {
            n: {k: at_places(layers[n], t) for k, t in slots.items() if isinstance(t, torch.Tensor) and t.dim()}
            for n, slots in state.items()
        }

    own = {"reset_state": False} if "reset_state" in registry.settings(METHODS[name]) else {}  # else it starts anew
    run = make(name, 12, OPTIMIZERS[kind], watch=lambda *_: before.update(held()), own=own)
    for step in range(12):
        run.train(1)
        for layer, slots in held().items():
            assert slots.keys() == before[layer].keys(), (step, layer)
            weights = at_places(run.layers()[layer], run.layers()[layer].values)
            for key, slot in slots.items():
                old, new = before[layer][key], START.get(kind, {}).get(key, 0.0)
                back = {place for place in slot if weights[place] == 0 and slot[place] == new}  # gone and grown again
                assert slot == {place: new if place in back else old.get(place, new) for place in slot}, (step, layer)
    assert run.output().isfinite().all() and run.controller.step == 12


@pytest.mark.parametrize("name", methods("matrix optimizers"))
def test_optimizers_of_matrices_are_refused(name):
    class Muon(optim.Optimizer):
        """As torch's and Keller Jordan's, which orthogonalise a matrix, were it to take vectors."""

        def __init__(self, params):
            super().__init__(params, {"lr": 0.02})

    if not METHODS[name].moves_weights:
        return
    with pytest.raises(TypeError, match="optimizer must be one whose state is known to move with the weights, .* Muon"):
        make(name, optimizer=Muon)
    if METHODS[name].start != "plain":  # torch's own takes no vectors
        with pytest.raises(ValueError, match="Muon only supports 2D parameters"):
            make(name, optimizer=optim.Muon)


# --- around the step -------------------------------------------------------------------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize("fused", [False, True], ids=["apart", "fused"])
@pytest.mark.parametrize("name", methods("scaler"))
def test_steps_that_overflow_do_not_count(name, fused):
    adam = partial(optim.Adam, lr=0.02, fused=fused)
    undisturbed, run = make(name, FEW, adam).train(FEW), make(name, FEW, adam)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)  # powers of two are exact
    due = next((s for s in range(5, FEW) if run.controller.due(s)), 8)

    def step(factor):
        scaler.scale(run.loss() * factor).backward()
        scaler.step(run.optimizer)
        scaler.update()
        run.optimizer.zero_grad()

    for count in range(FEW):
        if count in (2, due - 1):
            before = saved((run.model.state_dict(), run.controller.state_dict()))
            step(float("inf"))
            after = run.model.state_dict(), run.controller.state_dict()
            assert run.controller.step == count and differences(before, after) == []
        step(1.0)
    assert differences(undisturbed.state()[::2], run.state()[::2]) == []


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", methods("accumulation"))
def test_two_micro_batches_are_one_batch(name):
    """With a scheduler and clipping around the step."""
    runs = []
    for parts in ([slice(None)], [slice(0, 20), slice(20, NODES)]):
        run = make(name, FEW, partial(optim.SGD, lr=0.2, momentum=0.9))
        scheduler = optim.lr_scheduler.CosineAnnealingLR(run.optimizer, FEW)
        for _ in range(FEW):
            for part in parts:
                (run.loss(part) * (len(range(NODES)[part]) / NODES)).backward()
            nn.utils.clip_grad_norm_(run.model.parameters(), 0.5)
            run.optimizer.step()
            scheduler.step()
            run.optimizer.zero_grad()
        runs.append(run)
    assert differences(runs[0].model.state_dict(), runs[1].model.state_dict(), rtol=1e-8, atol=1e-10) == []


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", methods("closures"))
def test_a_closure_is_a_step(name):
    run = make(name, FEW)

    def closure():
        run.optimizer.zero_grad()
        loss = run.loss()
        loss.backward()
        return loss

    for _ in range(FEW):
        assert run.optimizer.step(closure).isfinite()
    assert differences(plain(name, FEW), run.state()) == []


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", methods("compile"))
def test_a_compiled_model_trains_alike(name):
    run, other = make(name), make(name)
    torch.compiler.reset()
    run.model.convs[0].compile(backend="eager")
    assert differences(run.train(4).state(), other.train(4).state(), rtol=1e-9, atol=1e-12) == []


# --- checkpoints, copies, ends ---------------------------------------------------------------------------------------


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", methods("resume"))
def test_training_goes_on_from_a_checkpoint_bit_for_bit(name):
    run, states = make(name, FEW), {}
    for step in range(max(AT) + 1):
        if step in AT:
            states[step] = saved(run.state())
        run.train(1)
    for step, (model, optimizer, controller) in states.items():
        other = make(name, FEW, seed=5)
        other.model.load_state_dict(model)
        other.optimizer.load_state_dict(optimizer)
        other.controller.load_state_dict(controller)
        assert differences(plain(name, FEW), other.train(FEW - step).state()) == [], step


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", methods("copies"))
def test_a_copy_trains_alike(name):
    run = make(name, FEW).train(7)
    other = run.copy()
    assert other.controller.model is other.model and other.controller.optimizer is other.optimizer
    run.train(2)  # leaves the copy alone
    assert other.controller.step == 7
    assert differences(plain(name, FEW), other.train(FEW - 7).state()) == []


@pytest.mark.sampled(3)
@pytest.mark.parametrize("at", [9, FEW])
@pytest.mark.parametrize("name", methods("finalize"))
def test_the_final_model_is_the_same_function(name, at):
    run = make(name, FEW).train(at)
    before, state = run.output(), saved(run.state())
    try:
        final = run.controller.finalize()
    except RuntimeError as refusal:  # rather than to change the function
        assert "finalize() must come after step" in str(refusal) and at < run.controller.settled_at
        assert run.controller.attached and differences(saved(run.state()), state) == []
        return
    torch.testing.assert_close(run.output(final), before, rtol=1e-9, atol=1e-11)
    assert not run.controller.attached
    held = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in final.parameters() if p.requires_grad} <= held
    run.model = final
    counts, step = run.counts(), run.controller.step
    run.train(2)
    assert run.counts() == counts and run.controller.step == step and run.output().isfinite().all()


@pytest.mark.parametrize("name", methods("detach"))
def test_a_layer_has_one_controller(name):
    run = make(name, FEW).train(3)
    again = {"steps": FEW, "own": SETTINGS.get(name), "graph": run.graph}
    with pytest.raises(
        ValueError, match="that (another|no other) controller .*detach|that can be replaced .* got none"
    ):
        registry.make(METHODS[name], run.model, run.optimizer, **again)
    run.controller.detach()
    counts = run.counts()
    run.train(FEW)
    assert run.counts() == counts and run.controller.step == 3 and run.output().isfinite().all()


@pytest.mark.parametrize("name", methods("parts"))
def test_two_controllers_of_two_parts(name):
    run = make(name, FEW, attach=False)
    settings = {"steps": FEW, "common": {"sparsity": SPARSITY}, "own": SETTINGS.get(name), "graph": run.graph}
    both = [registry.make(METHODS[name], conv, run.optimizer, **settings) for conv in run.model.convs]
    run.train(FEW)
    assert [c.step for c in both] == [FEW, FEW] and run.output().isfinite().all()
    assert all(run.counts().values())


# --- processes -------------------------------------------------------------------------------------------------------


def train_ranks(name, rank, ranks):
    """What a run ends with, and whether DistributedDataParallel took part."""
    ddp = partial(nn.parallel.DistributedDataParallel, broadcast_buffers=False)
    try:
        run = make(name, 12, around=ddp if ranks > 1 else None)
    except RuntimeError as refusal:
        if "must not be in a DistributedDataParallel" not in str(refusal):
            raise
        run = make(name, 12)
    part = slice(rank * NODES // ranks, (rank + 1) * NODES // ranks)
    for _ in range(12):
        run.loss(part).backward()
        if run.call is None and ranks > 1:  # by hand
            for p in (p for p in run.model.parameters() if p.grad is not None):
                dist.all_reduce(p.grad)
                p.grad /= ranks
        run.optimizer.step()
        run.optimizer.zero_grad()
    sums = {n: checksum(torch.cat(m.pattern())) for n, m in run.layers().items()}
    return {"model": run.model.state_dict(), "sums": sums, "ddp": run.call is not None}


def worker(rank, folder):
    gc.freeze()  # what looks for a DistributedDataParallel among all objects need not look at those of the parent
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for name in sorted(METHODS):
        if name not in EXCUSED.get("ranks", {}):
            try:
                found[name] = train_ranks(name, rank, 2)
            except Exception as problem:
                found[name] = {"problem": f"{type(problem).__name__}: {problem}"}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Of two processes, what every method ended with: one start for all of them."""
    folder = str(tmp_path_factory.mktemp("ranks"))
    torch.multiprocessing.start_processes(worker, (folder,), nprocs=2, start_method="fork")
    return [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch has no gloo")
@pytest.mark.parametrize("name", methods("ranks"))
def test_two_ranks_are_one(name, ranks):
    first, second = (found[name] for found in ranks)
    assert "problem" not in first and "problem" not in second, (first, second)
    assert differences(first["sums"], second["sums"]) == []
    assert differences(first["model"], second["model"]) == []
    assert differences(first["model"], train_ranks(name, 0, 1)["model"], rtol=1e-8, atol=1e-10) == []
    assert first["ddp"] or not METHODS[name].keeps_size  # refused only where values get fewer
