"""Runs a study to its end, and once more, killed at ten random moments: `kills.py CONFIG UNDISTURBED KILLED SEED`.

Children are forks of this process, which has the modules but has computed nothing in several threads.
"""

import json
import os
import random
import signal
import sys
import time

import torch

from sparsegnn.study.run import run


def warm() -> None:
    """Import what a first step imports; without a backward pass, which no fork may come after."""
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.zeros(2)
    torch.optim.Adam([weight], fused=True).step()
    import tqdm  # noqa: F401

    import sparsegnn.experiments.train  # noqa: F401


def child(config: str, out: str) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run(config, out, progress=False)
            code = 0
        finally:
            os._exit(code)
    return pid


def count(path: str) -> int:
    """Whole lines so far."""
    return open(path, "rb").read().count(b"\n") if os.path.exists(path) else 0


def main(config: str, undisturbed: str, killed: str, seed: str) -> None:
    torch.set_num_threads(1)
    random.seed(int(seed))
    warm()
    begun = time.monotonic()
    assert os.waitstatus_to_exitcode(os.waitpid(child(config, undisturbed), 0)[1]) == 0
    whole, lines, kills = time.monotonic() - begun, [], 0
    while kills < 10 and len(lines) < 100:
        before, pid = count(killed), child(config, killed)
        deadline = time.monotonic() + 60
        while count(killed) < before + kills % 3 and time.monotonic() < deadline:  # after none, one or two rows
            time.sleep(0.002)
        time.sleep(random.uniform(0, whole / 18))
        os.kill(pid, signal.SIGKILL)
        kills += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        lines.append(count(killed))
    assert os.waitstatus_to_exitcode(os.waitpid(child(config, killed), 0)[1]) == 0
    print(json.dumps({"kills": kills, "lines": lines}))


if __name__ == "__main__":
    main(*sys.argv[1:])
