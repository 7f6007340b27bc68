"""What is printed: any text, to any stream, as strict JSON where asked for; and the exit code that goes with it."""

import dataclasses
import errno
import io
import json
import os
import signal
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import torch

import sparsegnn
from sparsegnn import _console, _info, cli
from sparsegnn import data as graphs
from sparsegnn.experiments import train

pytest.importorskip("typer")
PACKAGE = Path(sparsegnn.__file__).parent
#: markup of rich, emoji codes, escapes (7 and 8 bit), line breaks, direction marks, halves of characters, long text
HOSTILE = (
    *("[/foo]x", "[red]x", "[link=a]x[/link]", ":smile:", "\x1b[31mx", "\x9b31m", "\x1b]0;t\x07", "a\rb\nc\td", "\0"),
    *("\u202ex", "\u2028x", "\udcffx", "\ud83d", "\x7f", "é", "漢字", "🙂", "x" * 300, " ", ""),
)
ALL = " ".join(HOSTILE)


def escaped(text: str, encoding: str = "utf-8") -> str:
    """What may be printed of a text, said apart from the code: all but spaces and what is visible as its number."""
    hidden = {c: repr(c)[1:-1] for c in text if unicodedata.category(c)[0] in "CZ" and c != " "}
    return "".join(hidden.get(c, c) for c in text).encode(encoding, "backslashreplace").decode(encoding)


def strict(text: str):
    """One value of strict JSON."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    assert text.isascii() and not any(unicodedata.category(c) == "Cc" for c in text.rstrip("\n"))
    json.dumps(json.loads(text), ensure_ascii=False).encode()  # no halves of characters
    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def run(capsys):
    def call(*args):
        code = cli.main([str(a) for a in args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def graph(monkeypatch):
    """A small graph with the worst of names, which every `train` loads."""
    made = graphs.skewed(60, 6, 3, 8, signal=1.0, seed=3)
    made = dataclasses.replace(made, name=ALL, notes=(ALL,))
    monkeypatch.setattr(graphs, "load", lambda *args, **kwargs: made)
    return made


QUICK = ("train", "--hidden", "4", "--epochs", "3")


# --- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_tables_show_any_text_as_it_is(text, encoding, monkeypatch):
    for columns in ("1", "0", "²", "-5", "37", "80", "999999999999"):
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setenv("LINES", columns)
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
        _console.write(_console.table(text, [(text, (text, "dim")), ("name", text)], ("", text), box="SIMPLE_HEAD"))
        out = raw.getvalue().decode(encoding)
        monkeypatch.undo()
        assert all(c == "\n" or c.isprintable() for c in out) and len(out) < 20_000
        lines = out.splitlines()
        assert max(map(len, lines)) <= 400
        squeezed = "".join(c for c in out if c not in " \n|+-─")
        wanted = "".join(escaped(text, encoding).split())
        assert squeezed.startswith(wanted) and f"name{wanted}" in squeezed


def test_a_terminal_gets_colours_but_no_foreign_ones(monkeypatch):
    class Terminal(io.StringIO):
        isatty = lambda self: True  # noqa: E731

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stdout", Terminal())
    text = _console.table("[red]t", [("a\x1b[31m", ("c", "green"))])
    assert "\x1b[32mc" in text and "\\x1b[31m" in text and "\x1b[31m" not in text and "[red]t" in text


def test_tables_without_rich(monkeypatch):
    for name in ("rich", "rich.box", "rich.table", "rich.text"):
        monkeypatch.setitem(sys.modules, name, None)
    text = _console.table(ALL, [(ALL, ("x", "dim")), ("name", "y")], ("head", "second"))
    assert text.splitlines()[0] == escaped(ALL).rstrip() and text.count("\n") == 4
    assert _console.table("t", []) == "t\n"


def test_models_with_any_names(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    model = torch.nn.Module()
    model.add_module("[/foo]\x1b[31m\udcff", torch.nn.Linear(2, 3))
    sparsegnn.summary(model)
    assert "[/foo]\\x1b[31m\\udcff" in capsys.readouterr().out


def test_commands_with_any_text(run, graph, monkeypatch):
    monkeypatch.setenv("SPARSEGNN_PLAN", ALL.replace("\0", "").replace("\ud83d", ""))
    content = {**_info.info(), "libraries": {"cpu": ALL}, "build": {"flags": ALL}}
    content["ops"] = [{"op": "spmm", "cpu": f"fallback: {ALL}", "cuda": "PyTorch"}]
    monkeypatch.setattr(_info, "info", lambda: content)
    for args in (("info",), QUICK):
        code, out, err = run(*args)
        assert code == 0 and err == "" and all(c == "\n" or c.isprintable() for c in out)
        assert "".join(escaped(ALL).split()) in "".join(c for c in out if c not in "│ \n")
        code, out, err = run(*args, "--json")
        assert code == 0 and err == ""
        found = strict(out)
        assert ALL.encode("utf-8", "backslashreplace").decode() in (
            found.get("data"),
            found.get("libraries", {}).get("cpu"),
        )


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("error", [ValueError, RuntimeError, OSError, MemoryError, train.CheckFailed, SystemExit])
def test_errors_with_any_text(run, monkeypatch, error, debug):
    def fails(args):
        raise error(ALL)

    monkeypatch.setattr(cli, "_run", fails)
    code, out, err = run("info", "--json", *["--debug"] * debug)
    assert code == (1 if error in (RuntimeError, train.CheckFailed, SystemExit) else 2)
    assert strict(out)["type"] == error.__name__ and "[/foo]x" in strict(out)["error"]
    assert all(c == "\n" or c.isprintable() for c in err) and err.splitlines()[-1].startswith(
        "sparsegnn: [/foo]x [red]x"
    )
    assert ("Traceback" in err) == (debug or error is RuntimeError) or error is SystemExit


LIBRARIES = {  # what torch and the libraries say, and what of it is shown
    "choose, ../../csrc/cpu/isa.cpp:67, SPARSEGNN_ISA must be avx2, got x": "SPARSEGNN_ISA must be avx2, got x",
    "[enforce fail at a.cpp:1] DefaultCPUAllocator: can't allocate memory: 9\n": "[enforce fail at a.cpp:1] "
    "DefaultCPUAllocator: can't allocate memory: 9",
    "CUDA out of memory. Tried": "CUDA out of memory. Tried",
}


@pytest.mark.parametrize("said, shown", LIBRARIES.items())
def test_what_the_user_can_mend_is_one_line(run, monkeypatch, said, shown):
    def fails(args):
        raise RuntimeError(said)

    monkeypatch.setattr(cli, "_run", fails)
    code, out, err = run("info", "--json")
    assert code == 2 and err == f"sparsegnn: {shown}\n" and strict(out)["error"] == shown


USAGE = [("--bogus\x1b[31m",), ("--epochs", "[/foo]\x1b"), ("train", "[/foo]x\x1b"), ("bogus\udcff",)]


@pytest.mark.parametrize("args", USAGE, ids=ascii)
def test_usage_errors_with_any_text(run, args):
    args = args if args[0] in ("train", "bogus\udcff") else ("train", *args)
    code, out, err = run(*args)
    assert code == 2 and out == "" and "Usage:" in err and all(c == "\n" or c.isprintable() for c in err)
    code, out, again = run(*args, "--json")
    assert code == 2 and again == err and strict(out).keys() == {"error", "type"}
    assert len(strict(out)["error"]) > 10


# --- JSON ------------------------------------------------------------------------------------------------------------


def test_json_text_is_strict():
    value = {"a": [float("nan"), float("inf"), -float("inf"), 1.5, 2**70], ("k", 1): Path("p"), 3: None, "\udcff": True}
    want = {"a": [None, None, None, 1.5, 2**70], "['k', 1]": "p", "3": None, "\\udcff": True}
    assert strict(_console.json_text(value)) == want
    for text in HOSTILE:
        assert strict(_console.json_text(text)) == text.encode("utf-8", "backslashreplace").decode()


def test_a_run_of_one_epoch_has_no_times(run, graph):
    args = ("train", "--hidden", "4", "--epochs", "1")
    result = strict(run(*args, "--json")[1])
    assert result["seconds_per_step"] is None and result["test_accuracy"] >= 0
    code, out, _ = run(*args)
    assert code == 0 and "nan" not in out


@pytest.mark.parametrize("epochs", [1, 4])  # the loss of the only step is still finite, that of validation is not
def test_a_diverged_run_is_one_object(run, graph, epochs, tmp_path):
    args = ("--epochs", epochs, "--lr", "1e30", "--save", tmp_path / "m.pt", "--backend", "pyg")
    pytest.importorskip("torch_geometric")
    code, out, err = run(*QUICK, *args, "--json")
    assert code == 1 and strict(out)["type"] == "CheckFailed" and err == f"sparsegnn: {strict(out)['error']}\n"
    assert "diverged" in err and not os.listdir(tmp_path)


def test_finished_seeds_are_reported_before_what_stopped_the_next(run, graph, monkeypatch):
    real, calls = train.train, []

    def second_fails(config, data):
        calls.append(config.seed)
        if len(calls) == 3:
            raise train.CheckFailed("diverged")
        return real(config, data)

    monkeypatch.setattr(train, "train", second_fails)
    code, out, err = run(*QUICK, "--seeds", 5, "--seed", 7, "--json")
    assert code == 1 and calls == [7, 8, 9] and err == "sparsegnn: diverged\n"
    assert (
        strict(out)["seeds"] == [7, 8] and strict(out)["error"] == "diverged" and strict(out)["type"] == "CheckFailed"
    )


# --- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals(run, monkeypatch, number):
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    undone = []

    def waits(args):
        try:
            os.kill(os.getpid(), number)
            signal.sigtimedwait([], 5)
        finally:
            undone.append(True)

    monkeypatch.setattr(cli, "_run", waits)
    code, out, err = run("info", "--json")
    assert code == 128 + number and undone and err == f"sparsegnn: {strict(out)['error']}\n"
    assert {n: signal.getsignal(n) for n in before} == before


# --- streams ---------------------------------------------------------------------------------------------------------

PROGRAM = r"""
import sys, types
package = sys.modules["sparsegnn"] = types.ModuleType("sparsegnn")
package.__path__ = [sys.argv[1]]  # without __init__, which takes seconds to import torch
from sparsegnn import cli
def _run(args):
    print("r\xe9sult " * 3)
    if "fails" in args:
        raise ValueError("wr\xf6ng \\udcff \\x1b")
    if "saves" in args:  # a descriptor that was closed is taken by no file
        with open("file", "w") as f:
            assert f.fileno() > 2
    return 0
cli._run = _run
sys.exit(cli.main(sys.argv[2:]))
"""
R, E = "résult " * 3 + "\n", "sparsegnn: wröng \\udcff \\x1b\n"
FULL = f"sparsegnn: stdout cannot be written: {os.strerror(errno.ENOSPC)}\n"
STREAMS = [  # redirections, behaviour, exit code, stdout, stderr
    ("", "fine", 0, R, ""),
    ("", "fails", 2, R, E),
    (">&-", "saves", 0, "", R),
    (">&-", "fails", 2, "", R + E),
    ("2>&-", "saves", 0, R, ""),
    ("2>&-", "fails", 2, R, ""),
    (">&- 2>&- <&-", "saves", 0, "", ""),
    (">&- 2>&-", "fails", 2, "", ""),
    (">/dev/full", "fine", 2, "", R + FULL),
    (">/dev/full", "fails", 2, "", R + E + FULL),
    ("2>/dev/full", "fails", 2, R, ""),
    (">/dev/full 2>/dev/full", "fine", 2, "", ""),
    (">/dev/full 2>&-", "fails", 2, "", ""),
    ("| (exec <&-; sleep 0.4); exit ${PIPESTATUS[0]}", "fine", 0, "", ""),
    ("2> >(exec true)", "fails", 2, R, ""),
]


@pytest.mark.parametrize("encoding", ["utf-8", pytest.param("ascii", marks=pytest.mark.deep)])
@pytest.mark.parametrize("redirection, behaviour, code, out, err", STREAMS, ids=[f"{s[0]} {s[1]}" for s in STREAMS])
def test_streams(redirection, behaviour, code, out, err, encoding, tmp_path):
    env = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    command = ["bash", "-c", f'"$0" -c "$1" "$2" {behaviour} {redirection}', sys.executable, PROGRAM, str(PACKAGE)]
    done = subprocess.run(command, capture_output=True, env=env, cwd=tmp_path, timeout=60)
    shown = [text.encode(encoding, "backslashreplace") for text in (out, err)]
    assert (done.returncode, done.stdout, done.stderr) == (code, *shown)


@pytest.mark.deep
def test_results_of_a_real_run_survive_a_full_stdout(tmp_path):
    """The whole command, with what is saved written before anything is printed."""
    command = f"{sys.executable} -m sparsegnn train --epochs 2 --hidden 4 --save m.pt >/dev/full"
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C", "COLUMNS": "1"}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=env, cwd=tmp_path, timeout=300)
    assert done.returncode == 2 and "test accuracy" in " ".join(done.stderr.split()) and done.stderr.endswith(FULL)
    assert "Traceback" not in done.stderr and torch.load(tmp_path / "m.pt", weights_only=True)["result"]["weights"]


class Broken(io.StringIO):
    def write(self, text):
        raise OSError(errno.EIO, "broken")


def test_progress_is_not_worth_a_run(graph, monkeypatch):
    """Not even one that lives in a process without a command line."""
    closed, ticks = io.StringIO(), []
    closed.close()
    monkeypatch.setattr("tqdm.std.time", lambda: ticks.append(0) or 1e9 + 10 * len(ticks))  # a bar appears after 2 s
    for stream in (None, Broken(), closed):
        monkeypatch.setattr(sys, "stderr", stream)
        ticks.clear()
        config = train.TrainConfig(data="skewed", epochs=2, hidden=4, progress=True)
        assert train.train(config, graph)["test_accuracy"] >= 0
        assert len(ticks) > 3  # the bar was shown, or tried
    monkeypatch.undo()
