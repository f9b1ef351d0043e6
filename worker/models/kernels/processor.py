"""What kernels are compiled for: one of the x86-64 levels, or the very processor where it has none.

A level is what many processors have in common, so that kernels compiled with a container image, or kept on a disk
that machines share, fit wherever the image runs. Measured on an EPYC 9004, code for its level is as fast as code for
that very model: within 2 % for K-quants. Vectors are spelled out, so little is left to tune.
"""

from __future__ import annotations

from enum import Enum
from functools import cache
from typing import Any, NamedTuple

import llvmlite.binding as llvm  # type: ignore[import-untyped]

from worker.models.kernels.point_search import Permutes


class Processor(NamedTuple):
    """What code may use."""

    name: str
    features: str
    permutes: Permutes


class Level(Enum):
    """The x86-64 levels that kernels differ by."""

    V4 = Processor("x86-64-v4", "", Permutes.AVX512)
    V3 = Processor("x86-64-v3", "", Permutes.AVX2)


_NEEDS = {
    Level.V3: ("avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "popcnt"),
    Level.V4: ("avx2", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
}
"""Features that a level promises, by LLVM's names."""


@cache
def this_processor() -> Processor:
    """The highest level that this processor has; itself where it has none."""
    features = llvm.get_host_cpu_features()

    def has(level: Level) -> bool:
        return all(features.get(name, False) for name in _NEEDS[level])

    if has(Level.V3):
        return Level.V4.value if has(Level.V4) else Level.V3.value
    return Processor(llvm.get_host_cpu_name(), features.flatten(), Permutes.NONE)


def is_x86() -> bool:
    """Whether the levels mean anything here."""
    return bool(llvm.get_default_triple().startswith("x86_64"))


def target_machine(processor: Processor) -> Any:
    """Code generator. An engine takes it over, so each gets its own."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=processor.name, features=processor.features, opt=2, jit=True
    )
