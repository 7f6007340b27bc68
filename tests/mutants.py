"""Are the tests strong? Plants faults, one at a time, in a copy of the checkout, and asks `make test`'s tests.

    python tests/mutants.py [--area AREA] [--only NAME] [--targeted] [--again] [--report]

The faults are in tests/mutants/<area>.toml: in `file` the text `old`, which is there exactly once, becomes `new`;
`breaks` says what that does, and `tests` names what ought to see it, one after the other. Where these pass all others
of the fast leg run, unless it is --targeted. The copy and its builds stay in build/mutants, so that a fault in
C++ costs one file. At the end the tests that failed run once more, without a fault: there they must pass.

Results are in tests/results/mutants.json. A result holds until the fault, the file that it is in, or the tests that
are named change; --again asks again. Exit code 1 if a fault was not caught.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

try:
    import tomllib
except ImportError:  # Python 3.10, where pytest brings it
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
#: what to build after a change of a file: by the beginning of its path, the first that fits
NEEDS = (("csrc/cuda/", "emulator"), ("csrc/common/gpu", "emulator"), ("csrc/", "cpu"), ("", "python"))
TARGETS = {"cpu": ("dev", "sparsegnn_cpu"), "emulator": ("emulator", "sparsegnn_emulated", "-DSPARSEGNN_EMULATOR=ON")}
CAUGHT = ("caught", "timeout")  # a test that hangs is seen
SECONDS = {"targeted": 900, "rest": 3600}  # at most


@dataclass(frozen=True)
class Mutant:
    name: str
    area: str
    file: str
    old: str
    new: str
    breaks: str
    tests: tuple[str, ...]

    @property
    def needs(self) -> str:
        return next(kind for start, kind in NEEDS if self.file.startswith(start))

    def digest(self, root: Path) -> str:
        """Changes with whatever a targeted result depends on."""
        named = [root / name.partition("::")[0] for name in (self.file, *self.tests)]
        parts = [self.old, self.new, *(path.read_text() for path in named if path.is_file())]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def load(folder: Path = ROOT / "tests" / "mutants") -> list[Mutant]:
    """All faults, area by area."""
    files = {path.stem: tomllib.loads(path.read_text())["mutant"] for path in sorted(folder.glob("*.toml"))}
    return [Mutant(area=area, **m | {"tests": tuple(m["tests"])}) for area, listed in files.items() for m in listed]


def problems(m: Mutant, root: Path = ROOT) -> list[str]:
    """What keeps a fault from being planted as it is meant."""
    path = root / m.file
    if not path.is_file():
        return [f"{m.file} is not there"]
    times = path.read_text().count(m.old)
    found = [] if times == 1 else [f"`old` must be in {m.file} once, is {times} times"]
    found += [f"{t} is not there" for t in m.tests if not (root / t.partition("::")[0]).exists()]
    return found + (["`new` is `old`"] if m.new == m.old else []) + ([] if m.tests else ["no tests are named"])


class Tree:
    """A copy of the checkout with builds of its own, in which one fault at a time is planted."""

    def __init__(self, root: Path, folder: Path, options: argparse.Namespace):
        self.root, self.folder, self.options = root, folder, options
        self.stale = set(TARGETS) if (root / "CMakeLists.txt").is_file() else set()
        self.sync()

    def sync(self) -> None:
        """Copy what differs; equal files keep their times, and so their builds."""
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.check_output(command, cwd=self.root, text=True)
        wanted = {name for name in listed.split("\0") if name and (self.root / name).is_file()}
        for name in wanted:
            source, target = self.root / name, self.folder / name
            if not target.is_file() or target.read_bytes() != source.read_bytes():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
        listing = self.folder / ".copied"
        before = set(listing.read_text().split("\0")) if listing.is_file() else set()
        for name in before - wanted - {""}:
            (self.folder / name).unlink(missing_ok=True)
        listing.write_text("\0".join(sorted(wanted)))

    def rewrite(self, m: Mutant, text: str) -> None:
        (self.folder / m.file).write_text(text)
        self.stale |= {m.needs} & TARGETS.keys()

    def build(self, tests: tuple[str, ...]) -> str:
        """Bring the builds that these tests use up to date; the end of the compiler's output if that fails."""
        emulator = not self.options.targeted or any("csrc" in name for name in tests)
        wanted = self.stale & ({"cpu", "emulator"} if emulator else {"cpu"})
        return next(filter(None, map(self.build_one, sorted(wanted))), "")

    def build_one(self, kind: str) -> str:
        folder, target, *options = TARGETS[kind]
        torch = f"-DSPARSEGNN_TORCH={importlib.util.find_spec('torch').submodule_search_locations[0]}"
        for command in (
            ["cmake", "-S.", "-GNinja", f"-Bbuild/{folder}", "-DSPARSEGNN_CUDA=off", torch, *options],
            ["cmake", "--build", f"build/{folder}", "-j", str(self.options.jobs), "--target", target],
        ):
            command = [*shlex.split(self.options.before_build), *command]
            done = subprocess.run(command, cwd=self.folder, env=os.environ | self.environment(), text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
            if done.returncode:
                return done.stdout[-2000:] or str(done.returncode)
        self.stale.discard(kind)
        return ""

    def test(self, arguments: list[str], seconds: float) -> tuple[str, str]:
        """("passed", ""), ("failed", the first test that did), ("timeout", "") or ("error", the end of the output)."""
        output = self.folder / ".pytest-output"
        pid = os.fork()
        if pid == 0:
            self.become_pytest(["-x", "-q", "-p", "no:cacheprovider", "--no-header", *arguments], output)
        code = wait(pid, seconds)
        text = output.read_text(errors="replace") if output.is_file() else ""
        if code in (0, 5):  # 5: nothing was collected
            return "passed", ""
        if code is None:
            return "timeout", ""
        failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", text, re.M)
        if failed:
            return "failed", failed[1]
        return ("failed", f"a crash: {code}, {text[-300:]}") if code not in (1, 2, 3, 4) else ("error", text[-1000:])

    def become_pytest(self, arguments: list[str], output: Path) -> None:
        """In a forked child, for which torch is imported already, which takes longer than most tests."""
        code = 3
        try:
            os.setsid()
            os.chdir(self.folder)
            os.environ.update(self.environment())
            sys.path[:] = [str(self.folder), *(p for p in sys.path if not p.startswith(str(self.root / "tests")))]
            sys.stdout = sys.stderr = output.open("w")
            os.dup2(sys.stdout.fileno(), 1), os.dup2(sys.stdout.fileno(), 2)
            import pytest

            code = int(pytest.main(arguments))
            sys.stdout.flush()
        finally:
            os._exit(code)

    def environment(self) -> dict[str, str]:
        """As `make test` runs things, on this copy."""
        return {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.folder),
            "PYTHONDONTWRITEBYTECODE": "1",  # or bytecode of a fault outlives it where times are coarse
            "SPARSEGNN_STRICT": "1",
            "OMP_WAIT_POLICY": "passive",
        }


def wait(pid: int, seconds: float) -> int | None:
    """The exit code of a child that leads a session, negative for a signal; None where it had to be killed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.1)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def import_what_tests_import() -> None:
    """So that each forked pytest need not; nothing of this package, of which every fault wants a fresh one."""
    os.environ["OMP_NUM_THREADS"] = "1"  # as in `make test`; what is imported here reads it
    for name in ("scipy.sparse", "torch._dynamo", "torch.testing", "torch_geometric.nn", "pytest", "hypothesis"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def is_test(by: str) -> bool:
    return by.startswith("tests/") and "::" in by


def judge(tree: Tree, m: Mutant, before: str) -> dict:
    """Plant one fault, build, test, and mend it. `before` is the test that caught it the last time: it runs first."""
    start = time.monotonic()
    right = (tree.root / m.file).read_text()
    tree.rewrite(m, right.replace(m.old, m.new))
    try:
        if wrong := tree.build(m.tests):
            return {"status": "no build", "by": wrong, "seconds": round(time.monotonic() - start, 1)}
        for name in dict.fromkeys((*filter(is_test, [before]), *m.tests)):
            found, by = tree.test([name], SECONDS["targeted"])
            if found != "passed" and not (name == before and found == "error"):  # that test may be gone
                break
        if found == "passed" and not tree.options.targeted:
            found, by = tree.test(["tests", *(f"--ignore={t}" for t in m.tests if "::" not in t)], SECONDS["rest"])
    finally:
        tree.rewrite(m, right)
    status = {"passed": "survived", "failed": "caught"}.get(found, found)
    return {"status": status, "by": by, "seconds": round(time.monotonic() - start, 1)}


def confirm(tree: Tree, results: dict[str, dict]) -> None:
    """Tests that caught a fault must pass without one; where one does not, its faults are not caught by it."""
    tests = sorted({r["by"] for r in results.values() if r["status"] == "caught" and is_test(r["by"])})
    if wrong := tree.build(tuple(tests)):
        raise SystemExit(f"the copy without a fault does not build: {wrong}")
    while tests:
        found, by = tree.test(tests, SECONDS["rest"])
        if found == "passed":
            return
        if by not in tests:
            raise SystemExit(f"the tests do not run without a fault: {found} {by}")
        tests.remove(by)
        for r in results.values():
            if r["by"] == by:
                r["status"] = "fails without the fault"


def report(mutants: list[Mutant], results: dict[str, dict]) -> bool:
    """Print the table; whether all were caught."""
    rows = [(m, results.get(m.name, {"status": "not run", "by": "", "seconds": 0})) for m in mutants]
    for m, r in rows:
        print(f"{m.area:12} {m.name:40} {r['status']:10} {r['seconds']:6.0f} s ", *r["by"].splitlines()[:1])
    for area in dict.fromkeys(m.area for m, _ in rows):
        mine = [r["status"] for m, r in rows if m.area == area]
        print(f"{area:12} {sum(s in CAUGHT for s in mine):3} of {len(mine)} caught")
    for m, r in rows:
        if r["status"] not in CAUGHT:
            print(f"{r['status']}: {m.name} ({m.file}): {m.breaks}")
    caught = sum(r["status"] in CAUGHT for _, r in rows)
    print(f"{caught} of {len(rows)} faults caught: {100 * caught / max(1, len(rows)):.1f} %")
    return caught == len(rows)


def write(path: Path, targeted: bool, planted: int, results: dict[str, dict]) -> None:
    caught = sum(r["status"] in CAUGHT for r in results.values())
    asked = "named with the fault" if targeted else "the whole fast leg"
    content = {"tests": asked, "faults": planted, "asked": len(results), "caught": caught}
    content["results"] = dict(sorted(results.items()))
    path.parent.mkdir(exist_ok=True)
    path.with_suffix(".tmp").write_text(json.dumps(content, indent=1) + "\n")
    os.replace(path.with_suffix(".tmp"), path)


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--area", help="faults of tests/mutants/AREA.toml alone")
    parser.add_argument("--only", help="faults whose name contains this")
    parser.add_argument("--targeted", action="store_true", help="only the tests that are named with the fault")
    parser.add_argument("--again", action="store_true", help="also what has a result")
    parser.add_argument("--report", action="store_true", help="print the last results, run nothing")
    parser.add_argument("--jobs", type=int, default=1, help="compilers side by side")
    parser.add_argument("--before-build", default="", help="words before each command of a build: flock FILE, say")
    options = parser.parse_args(argv)
    everything = load(root / "tests" / "mutants")
    mutants = [m for m in everything if options.area in (None, m.area) and (options.only or "") in m.name]
    path = root / "tests" / "results" / "mutants.json"
    known = json.loads(path.read_text())["results"] if path.is_file() else {}
    results = {m.name: known[m.name] for m in everything if m.name in known}
    if options.report:
        return 0 if report(mutants, results) else 1
    if broken := {m.name: p for m in mutants if (p := problems(m, root))}:
        raise SystemExit(f"faults that cannot be planted: {broken}")
    todo = [m for m in mutants if options.again or results.get(m.name, {}).get("digest") != m.digest(root)]
    fresh: dict[str, dict] = {}
    if todo:
        tree = Tree(root, root / "build" / "mutants" / "tree", options)
        import_what_tests_import()
    for m in todo:
        before = results.get(m.name, {}).get("by", "")
        results[m.name] = fresh[m.name] = judge(tree, m, before) | {"digest": m.digest(root)}
        write(path, options.targeted, len(everything), results)
        print(f"[{len(fresh)}/{len(todo)}] {m.name}:", *list(fresh[m.name].values())[:3], flush=True)
    if fresh:
        confirm(tree, fresh)
        write(path, options.targeted, len(everything), results)
    return 0 if report(mutants, results) else 1


if __name__ == "__main__":
    sys.exit(main())
