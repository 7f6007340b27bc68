"""Programs in processes of their own that have imported torch and nothing else: forked off one, for that takes seconds.

What a program must do before torch is there, or say to Python itself, is for `subprocess`.
"""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SERVER = """
import json, os, sys
import torch
for line in sys.stdin:
    told = json.loads(line)
    child = os.fork()
    if child:
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    os.environ.clear()
    os.environ.update(told["env"])
    os.chdir(told["cwd"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number in (1, 2):
        os.dup2(os.open(told["outputs"][number - 1], os.O_WRONLY), number)
    sys.argv = ["-c", *told["argv"]]
    exec(compile(told["program"], "<string>", "exec"), {"__name__": "__main__"})
    break
"""


@functools.cache
def _server(parent: int) -> subprocess.Popen:
    """One for each process that asks."""
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(lambda: os.getpid() == parent and server.kill())  # not at the end of a child of the tests
    return server


def python(program: str, *argv: str, cwd: str | Path | None = None, **variables: str) -> subprocess.CompletedProcess:
    """Like `subprocess.run([sys.executable, "-c", program, *argv])`, with variables set, and output kept as text."""
    server = _server(os.getpid())
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / name for name in ("stdout", "stderr")]
        for path in outputs:
            path.touch()
        told = {"program": program, "argv": argv, "env": dict(os.environ | variables), "cwd": str(cwd or os.getcwd()),
                "outputs": [str(path) for path in outputs]}  # fmt: skip
        server.stdin.write(json.dumps(told) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(program, code, *(path.read_text() for path in outputs))


def output(program: str, *argv: str, **variables: str) -> str:
    """What a program prints that must end well."""
    done = python(program, *argv, **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout
