"""Measuring cases: contenders that take turns in one process, suites of bars with a process for every regime of memory.

Scripts run by their path put ``FOLDER`` on the path first: cases, suites and these modules are imported from there.
"""

from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1]  # benchmarks/
