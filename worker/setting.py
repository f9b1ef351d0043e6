"""On what terms long work is done: what this machine lends to it, whom it tells how far it is, and what stops it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from config.roots import NOWHERE_ELSE, Roots
from worker.stop import ShouldStop


@dataclass(frozen=True)
class WorkProgress:
    """How far long work is.

    Attributes:
        done: Work done, in a unit that the function names: bytes, chunks, tokens, modules, weights. A fraction where
            several move together.
        total: Work in all, in the same unit.
        detail: What was worked on last, such as a tensor's name; empty where nothing has a name.
    """

    done: float
    total: float
    detail: str = ""


Report = Callable[[WorkProgress], None]
"""Is told how far the work is, on the calling thread, in order."""


def no_report(progress: WorkProgress) -> None:
    """Say nothing."""


def never() -> bool:
    """Do not stop."""
    return False


@dataclass(frozen=True, kw_only=True)
class WorkSetting:
    """What always travels together to work that takes long. Nothing of it but the converter changes a result.

    Attributes:
        roots: Where symlinks of model directories may lead.
        scratch_dir: Where temporary directories are made; by default the system's.
        llama_cpp_dir: A llama.cpp checkout whose conversion package to use (``TRAINPACK_LLAMA_CPP_DIR``).
        threads: Tensors or slabs worked on at a time; None for each function's own default.
        report: Is told how far the work is.
        should_stop: Asked at safe points; ``StopRequested`` is raised where it says so.
    """

    roots: Roots = NOWHERE_ELSE
    scratch_dir: Path | None = None
    llama_cpp_dir: Path | None = None
    threads: int | None = None
    report: Report = no_report
    should_stop: ShouldStop = never


ON_THIS_MACHINE = WorkSetting()
"""Nothing asked for: no links, the system's scratch, nobody told."""
