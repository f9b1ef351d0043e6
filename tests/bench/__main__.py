"""``python -m tests.bench``: all benchmarks, one after the other."""

from __future__ import annotations

import runpy
import sys

BENCHMARKS = ("tests.bench.kernels", "tests.bench.packaging")

for name in BENCHMARKS:
    print(f"== {name}")
    sys.argv = [name]
    runpy.run_module(name, run_name="__main__")
