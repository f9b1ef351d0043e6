"""``python -m tests.bench``: all benchmarks, one after the other. ``python -m tests.bench NAME ...`` runs one."""

from __future__ import annotations

import runpy
import sys

BENCHMARKS = ("kernels", "packaging", "scaleout", "fleet")
OTHERS = (
    "evaluate",
    "imatrix",
    "fit",
    "gpu",
    "service",
    "field",
    "kept",
    "model",
    "hostile",
    "fairness",
    "forecasts",
    "soak",
    "upgrade",
    "trainers",
)
"""Run by name only."""

if sys.argv[1:] and sys.argv[1] not in (*BENCHMARKS, *OTHERS):
    sys.exit(f"no benchmark {sys.argv[1]!r}; there are {', '.join((*BENCHMARKS, *OTHERS))}")
chosen, arguments = (sys.argv[1:2], sys.argv[2:]) if sys.argv[1:] else (BENCHMARKS, [])
for name in chosen:
    print(f"== tests.bench.{name}")
    sys.argv = [f"tests.bench.{name}", *arguments]
    runpy.run_module(f"tests.bench.{name}", run_name="__main__")
