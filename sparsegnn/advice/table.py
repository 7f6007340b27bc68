"""An advice as data, and as tables."""

from __future__ import annotations

from dataclasses import asdict

import torch

from sparsegnn import _console
from sparsegnn._version import __version__
from sparsegnn.advice.accuracy import accuracy, known
from sparsegnn.advice.search import Findings, Found
from sparsegnn.advice.verdict import Answer, milliseconds


def as_data(findings: Findings, answer: Answer, took: float) -> dict:
    """What :func:`sparsegnn.advise` returns: plain numbers, texts, lists and dicts."""
    given = findings.given
    rows = sorted(findings.options, key=lambda x: (x.measured is None, x.step))
    return {
        "answer": answer.answer,
        "text": answer.text,
        "option": None if answer.option is None else str(answer.option),
        "equal_time_width": answer.equal_time_width,
        "equal_weights_width": answer.equal_weights_width,
        "equal_weights_seconds": answer.equal_weights_seconds,
        "step": given.step,
        "parts": given.seconds,
        "memory": given.memory,
        "weights": given.weights,
        "options": [_row(found, given) for found in rows],
        "accuracy": accuracy([found.option for found in rows]),
        "left_out": findings.left_out,
        "notes": _notes(findings),
        "rounds": findings.rounds,
        "seconds": took,
        "threads": torch.get_num_threads(),
        "versions": {"sparsegnn": __version__, "torch": str(torch.__version__)},
    }


def _row(found: Found, given: Found) -> dict:
    return {
        "option": str(found.option),
        "levers": {k: v for k, v in asdict(found.option).items()},
        "expected": found.expected,
        "measured": found.measured,
        "speedup": given.step / found.step,
        "parts": found.seconds,
        "memory": found.memory,
        "weights": found.weights,
        "accuracy": known(found.option),
    }


def _notes(findings: Findings) -> list[str]:
    if not findings.strangers:
        return []
    return [f"the loss depends on {findings.strangers} tensor(s) outside of the model that require a gradient, as "
            "features that are not constant: they get one in each step, and no optimizer updates them"]  # fmt: skip


def as_text(found: dict) -> str:
    """Tables of the parts and of the options, what was left out, and the answer."""
    parts = [(p, _ms(t), f"{100 * t / found['step']:.0f}") for p, t in found["parts"].items()]
    parts.append(("step", _ms(found["step"]), ""))
    text = _console.table("one training step", parts, ("part", "ms", "%"), box="SIMPLE_HEAD", right=(1, 2))
    rows = [("as it is", "", _ms(found["step"]), "1.00", _mib(found["memory"]), f"{found['weights']:,}")]
    rows += [
        (row["option"], _ms(row["expected"]), _ms(row["measured"]), f"{row['speedup']:.2f}", _mib(row["memory"]),
         f"{row['weights']:,}")
        for row in found["options"]
    ]  # fmt: skip
    head = ("option", "expected ms", "measured ms", "times faster", "MiB", "weights")
    text += _console.table("options", rows, head, box="SIMPLE_HEAD", right=range(1, 6))
    lines = [f"accuracy of {what}: {said}" for what, said in found["accuracy"].items()]
    reasons: dict[str, list[str]] = {}
    for what, why in found["left_out"].items():
        reasons.setdefault(why, []).append(what)
    lines += [f"left out: {', '.join(what)}: {why}" for why, what in reasons.items()]
    lines += [f"note: {note}" for note in found["notes"]]
    text += "".join(f"{_console.clean(line)}\n" for line in lines)
    return text + f"\n{_console.clean(found['text'])}\n"


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else milliseconds(seconds)


def _mib(memory: dict[str, int]) -> str:
    return f"{sum(memory.values()) / 2**20:.1f}"
