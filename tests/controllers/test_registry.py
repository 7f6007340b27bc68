"""The registry of methods: what it takes, what it refuses, and how a method is made of a recipe and settings."""

import sys
import types

import pytest
import torch
from torch import nn

from sparsegnn import controllers
from sparsegnn.controllers import METHODS, SET, Controller, GradualMagnitude, Rewiring, RigL, StaticSparse, registry
from sparsegnn.nn import SparseLinear


@pytest.fixture(autouse=True)
def restore():
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


def make(name, steps=100, **kwargs):
    model = nn.Sequential(SparseLinear(8, 8, sparsity=registry.find(name).start_sparsity(0.5)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return registry.make(registry.find(name), model, optimizer, steps=steps, **kwargs)


def test_every_method_describes_itself():
    assert {"static": StaticSparse, "set": SET, "rigl": RigL, "gmp": GradualMagnitude}.items() <= METHODS.items()
    for name, cls in METHODS.items():
        assert cls.method == name and cls.family in registry.FAMILIES and cls.paper and cls.__doc__
        assert cls.__module__.startswith(f"sparsegnn.controllers.{cls.family}.")
        assert cls.dense_gradient_need in ("never", "at updates", "every step") and cls.start in (
            "sparse",
            "dense",
            "plain",
        )
        assert {"update_every", "stop_at"} <= cls.recipe(200).keys() | registry.settings(cls).keys()


def test_a_class_of_ones_own():
    @controllers.register("newest")
    class Newest(Rewiring):
        paper = "nobody, 2026"

        def grow_scores(self, name, layer):
            return self.random_scores(name, layer)

    assert registry.find("newest") is Newest and Newest.method == "newest"
    controller = make("newest", own={"drop_fraction": 0.25})
    assert (controller.update_every, controller.stop_at, controller.drop_fraction(0)) == (5, 75, 0.25)
    first = Newest

    @controllers.register("newest")  # the cell is run again
    class Newest(Rewiring):
        pass

    assert registry.find("newest") is Newest is not first


def test_a_class_that_is_imported():
    module = types.ModuleType("my_methods")
    module.Mine, module.other = type("Mine", (SET,), {}), 3
    sys.modules["my_methods"] = module
    try:
        assert registry.find("my_methods:Mine") is module.Mine
        for bad in ("my_methods:other", "my_methods:missing", "no_such_module:X", ":", "my_methods:"):
            with pytest.raises(ValueError, match="method must be"):
                registry.find(bad)
    finally:
        del sys.modules["my_methods"]


def test_settings_come_from_recipe_command_line_and_own_in_this_order():
    controller = make("gmp", steps=200, common={"sparsity": 0.75, "drop_fraction": 0.5}, own={"stop_at": 90})
    assert (controller.update_every, controller.start_at, controller.stop_at, controller.sparsity) == (10, 20, 90, 0.75)
    with pytest.raises(ValueError, match="method 'gmp' must have the setting 'drop_fraction', it has sparsity, distri"):
        make("gmp", own={"drop_fraction": 0.5})


@pytest.mark.parametrize("name, cls, error, words", [
    ("rigl", SET, ValueError, "name must be new, got 'rigl', which is RigL"),
    ("a b", SET, ValueError, "name must be letters"),
    ("x", int, TypeError, "must be a subclass of Controller"),
    ("x", Controller, ValueError, "family of Controller must be one of"),
])  # fmt: skip
def test_refused(name, cls, error, words):
    before = dict(METHODS)
    with pytest.raises(error, match=words):
        controllers.register(name)(cls)
    assert before == METHODS
    with pytest.raises(ValueError, match="method must be one of dense, .*gmp"):
        registry.find("nothing", others=("dense",))


def test_a_setting_without_a_default_is_refused():
    class Asking(SET):
        def __init__(self, model, optimizer, *, more):
            super().__init__(model, optimizer)

    with pytest.raises(TypeError, match="setting 'more' of Asking must have a default"):
        controllers.register("asking")(Asking)
