"""Files that are replaced: what is refused before any work, and that the old file or the new one is there, whole."""

import errno
import json
import os
import resource
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sparsegnn
from sparsegnn import _files, cli
from sparsegnn import data as graphs
from sparsegnn.experiments.config import check_writable

PACKAGE = Path(sparsegnn.__file__).parent


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """Names that are no place for a file, in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("old").write_text("old")
    Path("folder").mkdir()
    Path("link").symlink_to("old")
    Path("dangling").symlink_to("nowhere")
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind("socket")
    return sorted(os.listdir())


REFUSED = {
    "": "not a name of a file",
    "a\0b": "not a name of a file",
    ".": "it is a folder",
    "..": "it is a folder",
    "/": "it is a folder",
    "new/": "it is a folder",
    "folder": "it is a folder",
    "link": "it is a symbolic link",
    "dangling": "it is a symbolic link",
    "pipe": "it is a pipe",
    "socket": "it is a socket",
    "/dev/null": "it is a device",
    "/dev/stdout": "it is a symbolic link",
    "no/such/m.pt": "No such file or directory: no/such",
    "old/m.pt": "Not a directory",
    "x" * 256: "File name too long",
    "\ud800": "surrogates not allowed",
    "/proc/m.pt": "No such file or directory: /proc",
}


@pytest.mark.parametrize("path", REFUSED, ids=lambda p: ascii(p)[:20])
def test_refused_before_any_work(hostile, path, monkeypatch, capsys):
    pytest.importorskip("typer")
    monkeypatch.setattr(graphs, "load", lambda *args, **kwargs: pytest.fail("the graph was loaded"))
    assert cli.main(["train", "--save", path]) == 2
    err = capsys.readouterr().err
    assert err.startswith("sparsegnn: save must be a file in a writable folder, got ") and REFUSED[path] in err
    with pytest.raises(OSError if path not in ("a\0b", "\ud800") else (OSError, ValueError)):
        _files.replace(path, b"new")
    kept = [n for n in os.listdir() if not n.endswith(".tmp")]
    assert sorted(kept) == hostile and Path("old").read_text() == "old"
    assert Path("link").is_symlink() and Path("dangling").is_symlink() and stat.S_ISFIFO(os.lstat("pipe").st_mode)


@pytest.mark.parametrize("path", [5, b"m.pt", True, ["m.pt"]])
def test_only_text_is_a_path(path):
    with pytest.raises(TypeError, match="save must be a path"):
        check_writable(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_without_permission(tmp_path):
    (tmp_path / "m.pt").touch(mode=0o444)
    with pytest.raises(ValueError, match="the file there cannot be written"):
        _files.check("save", tmp_path / "m.pt")
    tmp_path.chmod(0o555)
    with pytest.raises(ValueError, match="Permission denied"):
        _files.check("save", tmp_path / "new.pt")
    tmp_path.chmod(0o755)


@pytest.mark.parametrize("unnamed", [True, False])
@pytest.mark.parametrize("name", ["m.pt", "x" * 255, "é\udcff", "-", " ", "a b\n"])
def test_replaced_and_nothing_else_left(tmp_path, monkeypatch, name, unnamed):
    if not unnamed:
        monkeypatch.setattr(_files, "UNNAMED", 0)
    monkeypatch.chdir(tmp_path)
    umask = os.umask(0o027)
    for content in (b"first", bytes(100_000)):
        _files.check("save", name)
        _files.replace(name, content)
        assert Path(name).read_bytes() == content and os.listdir() == [name]
        assert stat.S_IMODE(os.stat(name).st_mode) == (0o640 if content == b"first" else 0o600)
        os.chmod(name, 0o600)  # which the next one keeps
    os.umask(umask)


@pytest.mark.parametrize("unnamed", [True, False])
def test_a_full_disk_keeps_the_old_file_and_the_result(tmp_path, monkeypatch, capsys, unnamed):
    pytest.importorskip("typer")
    if not unnamed:
        monkeypatch.setattr(_files, "UNNAMED", 0)
    monkeypatch.setattr(graphs, "load", lambda *args, **kwargs: graphs.skewed(60, 6, 3, 8, seed=3))
    saved = tmp_path / "m.pt"
    saved.write_text("old")
    real = torch.save

    def full_from_here_on(*args):
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
        real(*args)

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(torch, "save", full_from_here_on)
    try:
        code = cli.main(["train", "--epochs", "2", "--hidden", "4", "--save", str(saved), "--json"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert code == 2 and result["weights"] > 0 and result["type"] == "NotSaved"
    assert err == f"sparsegnn: {result['error']}\n" and os.strerror(errno.EFBIG) in err
    assert saved.read_text() == "old" and os.listdir(tmp_path) == ["m.pt"]


def test_what_takes_the_place_in_the_meantime_is_not_replaced(tmp_path):
    for make in (Path.mkdir, lambda p: p.symlink_to("x"), os.mkfifo):
        path = tmp_path / "m.pt"
        _files.check("save", path)
        make(path)
        with pytest.raises(OSError, match="so the content is in (.*)'?: ") as e:
            _files.replace(path, b"new")
        (kept,) = tmp_path.glob("*.tmp")
        assert kept.read_bytes() == b"new" and str(kept) in str(e.value) and not path.is_file()
        kept.unlink()
        path.rmdir() if path.is_dir() else path.unlink()


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import _files
if sys.argv[2] == "named":
    _files.UNNAMED = 0
real, step = getattr(os, sys.argv[3]), sys.argv[3]
def killed(*args, **kwargs):
    if step == "link":
        real(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(os, step, killed)
_files.replace("m.pt", b"new" * 10_000)
"""


def has_unnamed_files(folder) -> bool:
    try:
        os.close(os.open(folder, os.O_TMPFILE | os.O_WRONLY))
    except (OSError, AttributeError):
        return False
    return True


@pytest.mark.parametrize(
    "way, step", [("unnamed", "fsync"), ("named", "fsync"), ("unnamed", "link"), ("named", "replace")]
)
def test_killed_in_the_middle(tmp_path, way, step):
    (tmp_path / "m.pt").write_text("old")
    command = [sys.executable, "-c", KILLED, str(PACKAGE), way, step]
    assert subprocess.run(command, cwd=tmp_path, timeout=60).returncode == -9
    assert (tmp_path / "m.pt").read_text() == "old"
    left = [n for n in os.listdir(tmp_path) if n != "m.pt"]
    assert len(left) <= 1 and all(n.startswith("sparsegnn-") and n.endswith(".tmp") for n in left)
    assert not left or (way, step) != ("unnamed", "fsync") or not has_unnamed_files(tmp_path)
    _files.check("save", tmp_path / "m.pt")  # what is left is in nobody's way
    _files.replace(tmp_path / "m.pt", b"new")
    assert (tmp_path / "m.pt").read_bytes() == b"new"


def test_on_the_disk_before_it_has_the_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, n=name, real=real: (calls.append(n), real(*args))[1])
    _files.replace(tmp_path / "m.pt", b"new")
    assert calls == ["fsync", "replace", "fsync"]
