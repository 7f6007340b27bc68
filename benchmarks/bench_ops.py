"""Every op and its baselines under pytest-benchmark: ``pytest benchmarks --benchmark-only``.

The quick cases of each op; ``sparsegnn bench OP`` measures all of them, interleaved.
"""

import pytest
from harness import runner


def contenders():
    for op in runner.names():
        cases = runner.load(op).cases()
        for case in [c for c in cases if c.get("quick")] or cases[:1]:
            label = "-".join(str(v) for k, v in case.items() if k != "quick")
            for name in ["sparsegnn", *runner.load(op).baselines(case)]:
                yield pytest.param(op, case, name, id=f"{op}-{label}-{name}")


@pytest.mark.parametrize("op, case, contender", contenders())
def test_op(benchmark, op, case, contender):
    bench = runner.load(op)
    function = bench.ours(case) if contender == "sparsegnn" else bench.baselines(case)[contender]
    benchmark.group = f"{op} {case}"
    benchmark.extra_info.update(runner.environment(), op=op, contender=contender, **bench.work(case))
    benchmark.pedantic(function, rounds=5, warmup_rounds=1)
