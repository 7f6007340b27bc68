"""Rows as a study writes them, made up by formulas: no run, no machine, no data set is behind any of them."""

import hashlib
import json
from pathlib import Path

MACHINE = {"processor": "Made-up CPU", "cores": 2, "threads": 2, "torch": "0.0", "date": "2000-01-01"}
SEED_OFFSETS = (-0.004, 0.0, 0.004, 0.002, -0.002)
METRICS = {"nodes": "accuracy", "links": "auc", "traffic": "mae"}


def row(**changes) -> dict:
    """A row of a dense net of 100 steps; ``changes`` replace its values."""
    metric = METRICS.get(changes.get("task", "nodes"), "accuracy")
    made = {
        "id": "0" * 12, "study": "made-up", "case": "toy gcn dense", "role": "dense", "matches": None, "of": None,
        "task": "nodes", "data": "toy", "model": "gcn", "method": "dense", "sparsity_asked": None, "hidden": 256,
        "seed": 0, "environment": MACHINE, "started": "2000-01-01T00:00:00", "metric": metric,
        "higher_is_better": metric != "mae", "val": 0.8, "test": 0.8, "tests": {metric: 0.8}, "steps": 100,
        "selected_step": 80, "curve": [[50, 0.7, 0.7, 5e9, 5.0], [100, 0.8, 0.8, 1e10, 10.0]], "layers": {},
        "model_bytes": 400_000, "flops": 1e10, "flops_weights": 8e9, "flops_aggregation": 2e9,
        "flops_elementwise": 1e9, "flops_mask_updates": 0, "seconds_training": 10.0, "seconds_per_step": 0.1,
        "seconds_forward": 0.04, "seconds_backward": 0.05, "seconds_optimizer": 0.01, "seconds_weights": 0.05,
        "seconds_aggregation": 0.03, "seconds_elementwise": 0.01, "seconds_mask_updates": 0.0, "seconds_other": 0.01,
        "weights": 100_000, "weights_dense": 100_000, "sparsity": 0.0, "peak_memory_bytes": 300e6,
        "run_memory_bytes": 100e6, "kernels": {"convs.0": "dense"}, "versions": {"sparsegnn": "0", "torch": "0.0"},
        "threads": 2, "config": {"epochs": 100, "lr": 0.01, "layers": 2},
    }  # fmt: skip
    made |= changes
    made["tests"] = {metric: made["test"]}
    made["config"] = made["config"] | {name: made[name] for name in ("data", "model", "method", "hidden", "seed")}
    return made


def ends(test: float, seconds: float) -> dict:
    """Of a row: this score after so many seconds, and none before."""
    return {"test": test, "seconds_training": seconds, "curve": [[100, 0.8, test, 1e10, seconds]]}


def scored(share: float, task: str, **changes) -> dict:
    """A row whose test score is this: of accuracy and AUC, a share of 1; of an error, 5 less 3 of it."""
    score = 5 - 3 * share if task == "traffic" else share
    worst = 5.0 if task == "traffic" else 0.5
    seconds, flops, steps = changes["seconds_training"], changes["flops"], 100
    curve = []
    for i in range(1, 11):
        reached = worst + (score - worst) * (1 - 0.5**i) / (1 - 0.5**10)
        curve.append([steps * i // 10, reached, reached, flops and flops * i / 10, seconds * i / 10])
    return row(task=task, test=score, val=score, curve=curve, **changes)


def net(data="toy", model="gcn", task="nodes", methods=("rigl", "set", "gradual"), sparsities=(0.5, 0.8, 0.9, 0.95),
        seeds=3, base=0.8, scale=1.0) -> list[dict]:  # fmt: skip
    """All rows of a net: dense, sparse of several methods, narrower dense and masked counterparts of the first."""
    rows = []
    here = {"data": data, "model": model}

    def add(case: str, share: float, speed: float, **more) -> None:
        for seed in range(seeds):
            spread = 1 + 5 * SEED_OFFSETS[(seed + len(case)) % 5]
            seconds = scale * 20 * spread / speed
            parts = {"weights": 0.6 / speed**2, "aggregation": 0.25, "elementwise": 0.1, "mask_updates": 0.0}
            parts["mask_updates"] = 0.02 if more["role"] == "sparse" else 0.0
            total = sum(parts.values()) + 0.05
            timed = {f"seconds_{p}": seconds / 100 * v / total for p, v in parts.items()}
            timed["seconds_other"] = seconds / 100 * 0.05 / total
            rows.append(scored(share + SEED_OFFSETS[seed], task, case=case, id=f"{abs(hash_of(case, seed)):012x}",
                               seed=seed, seconds_training=seconds, seconds_per_step=seconds / 100, **timed, **here,
                               **more))  # fmt: skip

    add(f"{data} {model} dense", base, 1.0, role="dense", method="dense", flops=1e12 * scale, model_bytes=2**20)
    for m, method in enumerate(methods):
        for sparsity in sparsities:
            name = f"{data} {model} {method} {sparsity}"
            kept = 1 - sparsity
            speed = 0.55 + (0.5 + 0.1 * m) * sparsity / (1 - 0.7 * sparsity)
            steps = [[0, 0.0], [40, sparsity / 2], [80, sparsity]] if method == "gradual" else [[0, sparsity]]
            layers = {f"convs.{i}": [[s, min(0.999, v * (0.9 + 0.1 * i))] for s, v in steps] for i in range(2)}
            if method == "rigl":
                layers["convs.0"] += [[50, layers["convs.0"][0][1] * 0.98]]
            loss = (0.02 + 0.01 * m) * sparsity**4
            common = {"flops": 1e12 * scale * (0.2 + 0.8 * kept), "weights": round(1e5 * kept)}
            add(name, base - loss, speed, role="sparse", method=method, sparsity_asked=sparsity, sparsity=sparsity,
                layers=layers, model_bytes=2**20 * min(1.0, 2 * kept), run_memory_bytes=100e6 * (0.4 + 0.6 * kept),
                **common)  # fmt: skip
            if m:
                continue
            for matches, width, lost, faster in (("weights", round(256 * kept), 0.05, 1 + 2 * sparsity),
                                                 ("time", round(256 / max(1.1, speed)), 0.01, speed),
                                                 ("memory", 180, 0.02, 1.2)):  # fmt: skip
                add(f"{name} narrow {matches}", base - lost * sparsity, faster, role="small_dense", method="dense",
                    matches=matches, of=name, hidden=width, flops=1e12 * scale / faster, weights=round(390 * width),
                    model_bytes=2**20 / faster)  # fmt: skip
            add(f"{name} masked", base - loss, 0.8, role="masked", method="masked-dense", of=name,
                sparsity_asked=sparsity, flops=1e12 * scale)  # fmt: skip
    return rows


def hash_of(case: str, seed: int) -> int:
    """The same in every process."""
    return int(hashlib.sha256(f"{case}/{seed}".encode()).hexdigest()[:12], 16)


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def study() -> list[dict]:
    """Three nets, one of each task, and a run that failed."""
    rows = net() + net("wiki", "tgn", "links", base=0.9, seeds=2, methods=("rigl", "set"))
    rows += net("roads", "gconvgru", "traffic", base=0.7, seeds=4, methods=("rigl",), scale=40)
    failed = {"id": "f" * 12, "case": "toy gcn rigl 0.99", "error": "CheckFailed: training diverged", "seed": 2}
    return [*rows, failed | {"data": "toy", "model": "gcn", "method": "rigl"}]
