"""How far a study is, and how long the rest of it will take by what its runs have taken so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sparsegnn import _console
from sparsegnn.study.plan import Run


class Estimate:
    """Seconds of runs: those of done ones, by their costs, of the same net and role if there are any.

    What is remembered is how many seconds a unit of cost took.
    """

    LEVELS = (
        lambda run: (id(run.set), run.model, run.config.hidden, run.role, run.method, run.sparsity),
        lambda run: (id(run.set), run.model, run.role),
        lambda run: (id(run.set),),
        lambda run: (),
    )

    def __init__(self, runs: Iterable[Run], rows: Mapping[str, Mapping]):
        self._sums: dict[tuple, list[float]] = {}
        for run in runs:
            if (seconds := rows.get(run.id, {}).get("seconds_wall")) is not None:
                self.add(run, seconds)

    def add(self, run: Run, seconds: float) -> None:
        for level, key in enumerate(self.LEVELS):
            total = self._sums.setdefault((level, *key(run)), [0.0, 0.0])
            total[0] += seconds
            total[1] += run.cost

    def seconds(self, run: Run) -> float | None:
        """None before any run is done."""
        for level, key in enumerate(self.LEVELS):
            seconds, cost = self._sums.get((level, *key(run)), (0.0, 0.0))
            if cost:
                return seconds / cost * run.cost
        return None

    def left(self, runs: Sequence[Run]) -> float | None:
        """Of all of these."""
        each = [self.seconds(run) for run in runs]
        return None if None in each else sum(each)


def duration(seconds: float | None) -> str:
    """``3 h 05 min``, ``4 min 10 s``, ``12 s``; ``?`` where it is not known."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 60} min {whole % 60:02} s" if whole >= 60 else f"{whole} s"


class Display:
    """One line on stderr while runs go on; messages above it."""

    def __init__(self, runs: Sequence[Run], todo: Sequence[Run], estimate: Estimate, progress: bool | None):
        from tqdm import tqdm

        stderr = _console.diagnostics()
        hidden = not (stderr.isatty() if progress is None else progress)
        self.todo, self.estimate = list(todo), estimate
        form = "{n_fmt} of {total_fmt} runs |{bar}| {elapsed}, left: {desc}"
        self.bar = tqdm(total=len(runs), initial=len(runs) - len(todo), disable=hidden, file=stderr, bar_format=form,
                        leave=False)  # fmt: skip

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *error) -> None:
        self.bar.close()

    def begin(self, run: Run) -> None:
        left = duration(self.estimate.left(self.todo))
        self.bar.set_description_str(f"{left}; {_console.clean(run.case)}, seed {run.seed}")

    def end(self, run: Run) -> None:
        self.todo.remove(run)
        self.bar.update(1)

    def say(self, text: str) -> None:
        """A message, whether progress is shown or not."""
        from tqdm import tqdm

        tqdm.write(_console.clean(text), file=_console.diagnostics())
