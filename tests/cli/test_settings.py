"""`--set name=value`: how a value is read, and what is said of one that cannot be."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import pytest

from sparsegnn import cli
from sparsegnn.cli import settings
from sparsegnn.controllers import SET, Controller

pytest.importorskip("typer")


class Method(Controller):
    """Nothing but a signature."""

    def __init__(self, model, optimizer, *, count: int = 3, share: float | Callable[[int], float] = 0.5,
                 on: bool = False, name: str = "x", until: int | None = None, kind: Literal["a", "b"] = "a",
                 widths: tuple[int, ...] = (), parts: Sequence[str] = (), each: str | Mapping[str, float] = "erk",
                 bare=2.5, anything=None):  # fmt: skip
        pass


READ = [
    ("count=12", 12), ("count= -1 ", -1), ("share=3", 3.0), ("share=1e-3", 1e-3), ("share=inf", float("inf")),
    ("on=true", True), ("on=False", False), ("name=None", "None"), ("name=", ""), ("name=a=b", "a=b"),
    ("until=none", None), ("until=7", 7), ("kind=b", "b"), ("widths=1,2", (1, 2)), ("widths=[1, 2.5]", (1, 2.5)),
    ("widths=(4,)", (4,)), ("parts=a,b", ("a", "b")), ("parts=['a', 'b']", ("a", "b")), ("each=erk", "erk"),
    ('each={"convs.0.lin": 0.5}', {"convs.0.lin": 0.5}), ("each={", "{"), ("bare=1", 1.0), ("anything=none", None),
    ("anything=true", True), ("anything=3", 3), ("anything=0.5", 0.5), ("anything=1,2", (1, 2)), ("anything=ab", "ab"),
]  # fmt: skip


@pytest.mark.parametrize("text, value", READ, ids=[t for t, _ in READ])
def test_read(text, value):
    (found,) = settings.read(Method, [text]).values()
    assert found == value and type(found) is type(value)


BAD = [
    ("count=1.5", "set: count must be an integer, got '1.5'"),
    ("count=", "set: count must be an integer, got ''"),
    ("count=none", "set: count must be an integer, got 'none'"),
    ("count=" + "9" * 5000, "set: count must be an integer, got '999999999999...9999999999999'"),
    ("share=half", "set: share must be a number, got 'half'"),
    ("on=1", "set: on must be true or false, got '1'"),
    ("until=never", "set: until must be an integer or none, got 'never'"),
    ("kind=c", "set: kind must be one of a, b, got 'c'"),
    ("widths=a", "set: widths must be numbers such as 1,2, got 'a'"),
    ("widths=" + "[" * 9000, None),
    ("parts=a,,b", "set: parts must be names such as a,b, got 'a,,b'"),
    ("bare=x", "set: bare must be a number, got 'x'"),
    ("count", "set must be name=value, got 'count'"),
    ("=3", "set must be name=value, got '=3'"),
    ("other=3", "method 'Method' must have the setting 'other', it has count, share, on, name, until, kind, widths, "),
]


@pytest.mark.parametrize("text, message", BAD, ids=[t[:20] for t, _ in BAD])
def test_bad_input(text, message):
    with pytest.raises(ValueError) as e:
        settings.read(Method, [text])
    assert str(e.value).startswith(message or "set: widths must be numbers")
    with pytest.raises(ValueError, match="set must name each setting once, got count twice"):
        settings.read(Method, ["count=1", "count=1"])


def test_annotations_that_cannot_be_read_leave_the_default():
    class Odd(SET):
        def __init__(self, model, optimizer, *, size: "NoSuchName" = 4):  # noqa: F821
            pass

    assert settings.read(Odd, ["size=3"]) == {"size": 3}
    with pytest.raises(ValueError, match="size must be an integer"):
        settings.read(Odd, ["size=x"])


COMMANDS = [
    ("--method gmp --set start_at=1.5", "set: start_at must be an integer, got '1.5'"),
    ("--method gmp --set drop_fraction=0.5", "method 'gmp' must have the setting 'drop_fraction', it has sparsity, "),
    ("--set x=1", "set must be left out for method 'dense', which has no settings, got 'x=1'"),
    ("--method gmp --drop-fraction 0.5", "drop_fraction must be left out for method 'gmp', which has no such setting"),
    ("--method gmp --sparsity 0.5 --set sparsity=0.6", "sparsity must be given once, got 0.5 and, in set, 0.6"),
    ("--method gmp --set sparsity=1.5", "sparsity must be in [0, 1), got 1.5"),
    ("--method gmp --set stop_at=300", "epochs must be at least 300 for method 'gmp', whose sparsity is final only"),
    ("--method gmp --set start_at=180", "GradualMagnitude: stop_at must be at least 180, got 150"),
    ("--method set --set drop_fraction=2", "SET: drop_fraction must be in [0, 1], got 2.0"),
    ("--method set --distribution global", "distribution must not be 'global' for method 'set', which starts sparse"),
    ("--method set --distribution {", "distribution must be a name or JSON {layer: sparsity}, got '{'"),
    ('--method set --distribution {"a":0.5}', "distribution must"),
    ("--method set --pattern rows", "pattern must be one of unstructured, fan_in, 2:4"),
    ("--method set --pattern block:32x32", "must"),
    ("--pattern fan_in", "pattern must be 'unstructured' for method 'dense', got 'fan_in'"),
    (
        "--method no_such_module:X",
        "method must be a class that can be imported, got 'no_such_module:X': Module",
    ),
    ("--method ..:X", "method must be a class that can be imported, got '..:X'"),
    ("--method json:loads", "method must be a subclass of sparsegnn.Controller, got 'json:loads'"),
    ("--method ''", "method must be one of dense, "),
]


@pytest.mark.parametrize("args, message", COMMANDS, ids=[a for a, _ in COMMANDS])
def test_bad_commands_exit_with_2(args, message, capsys, monkeypatch):
    from sparsegnn import data

    graph = data.skewed(60, 6, 3, 9, seed=3)
    monkeypatch.setattr(data, "load", lambda *a, **k: graph)
    args = [a.strip("'") for a in args.split()]
    assert cli.main(["train", "--json", "--no-progress", *args]) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and err == f"sparsegnn: {json.loads(out)['error']}\n"


@pytest.mark.parametrize("code", ["raise SystemExit(0)", "1 / 0", "def", "import no_such_module"])
def test_a_module_that_fails_is_bad_input(code, tmp_path, monkeypatch, capsys):
    (tmp_path / "failing_methods.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    assert cli.main(["train", "--method", "failing_methods:X"]) == 2
    err = capsys.readouterr().err
    assert "method must be a class that can be imported, got 'failing_methods:X': " in err and err.count("\n") == 1
