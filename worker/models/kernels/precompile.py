"""Fills the cache of compiled kernels: ``python -m worker.kernels.precompile [--cache DIR] [--warm-up]``.

Without options it is for building a container image: every kernel for every x86-64 level and for GPUs, about half a
minute of one core, so that no worker of that image ever compiles. With ``--warm-up`` a worker starts it beside itself:
the common types for this processor only, at the lowest priority, ending when the worker ends.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from worker.models.gguf.types import GGMLType
from worker.models.kernels import QUANTIZED_TYPES
from worker.models.kernels.catalogue import KERNELS, Kernel
from worker.models.kernels.compiler import keep, ptx
from worker.models.kernels.processor import Level, Processor, is_x86, this_processor

_T = GGMLType
COMMON_TYPES = (_T.Q4_K, _T.Q6_K, _T.Q5_K, _T.Q8_0, _T.Q3_K, _T.Q2_K, _T.IQ4_XS, _T.IQ4_NL, _T.Q4_0, _T.Q5_0)
"""What the quant types that people ask for most are mixed of, the default one's first."""
_PR_SET_PDEATHSIG = 1


def main(arguments: list[str] | None = None) -> int:
    """Command line.

    Returns:
        Exit code: 0, or 1 if the folder cannot be written to.
    """
    parser = argparse.ArgumentParser(prog="python -m worker.kernels.precompile", description=__doc__)
    parser.add_argument("--cache", type=Path, help="folder; that of the worker's settings if not given")
    parser.add_argument("--types", nargs="+", choices=[kind.name for kind in sorted(QUANTIZED_TYPES)], metavar="TYPE")
    parser.add_argument("--warm-up", action="store_true", help="common types, for this processor, in idle time")
    options = parser.parse_args(arguments)
    cache_dir = (options.cache or _cache_of_settings()).expanduser().absolute()
    if not _can_write(cache_dir):
        print(f"{cache_dir} cannot be written to", file=sys.stderr)
        return 1
    started = time.monotonic()
    if options.warm_up:
        step_back()
    names = options.types or [kind.name for kind in (COMMON_TYPES if options.warm_up else sorted(QUANTIZED_TYPES))]
    kernels = kernels_of([GGMLType[name] for name in names])
    made = keep(kernels, cache_dir, this_processor()) if options.warm_up else _for_all(kernels, cache_dir)
    count = sum(1 for _ in made)
    print(f"{count} kernels are compiled in {cache_dir}, after {time.monotonic() - started:.1f} s")
    return 0


def kernels_of(types: Sequence[GGMLType]) -> list[Kernel]:
    """Kernels of some types in their order, those without weights first."""
    chosen = [KERNELS.get((kind, weighted)) for weighted in (False, True) for kind in types]
    return list(dict.fromkeys(kernel for kernel in chosen if kernel is not None))


def step_back() -> None:
    """Take only time that nobody wants, and end with the process that started this one."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.nice(19)
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _for_all(kernels: list[Kernel], cache_dir: Path) -> Iterator[str]:
    processors: dict[Processor, None] = {this_processor(): None}
    if is_x86():
        processors |= dict.fromkeys(level.value for level in Level)
    for processor in processors:
        print(f"for {processor.name}", flush=True)
        yield from keep(kernels, cache_dir, processor)
    print("for GPUs", flush=True)
    for kernel in kernels:
        ptx(kernel, cache_dir)
        yield kernel.name


def _cache_of_settings() -> Path:
    from config.settings import load_settings

    return load_settings().kernels_dir


def _can_write(directory: Path) -> bool:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(directory, os.W_OK | os.X_OK)


if __name__ == "__main__":
    sys.exit(main())
