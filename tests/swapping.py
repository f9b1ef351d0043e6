"""Somebody who swaps directories for links while others work in them, at random, as fast as the system can."""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from pathlib import Path

_SPAWN = multiprocessing.get_context("spawn")
_LONGEST_S = 0.004


@dataclass(frozen=True)
class Swaps:
    """What is swapped.

    Attributes:
        seed: Of all that is drawn.
        places: Directories, and for each those that take its place; a file's name stands for a link that is planted
            there while there is none.
    """

    seed: int
    places: Sequence[tuple[Path, tuple[Path, ...]]]


@dataclass
class Swapped:
    """How often it has happened; filled in at the end."""

    times: int = 0
    per_place: dict[str, int] = field(default_factory=dict)


@contextlib.contextmanager
def swapping(swaps: Swaps) -> Iterator[Swapped]:
    """Swap in a process of its own while the body runs; all is put back at the end."""
    stop, told = _SPAWN.Event(), _SPAWN.SimpleQueue()
    process = _SPAWN.Process(target=_swap, args=(swaps, stop, told), daemon=True)
    process.start()
    swapped = Swapped()
    told.get()
    try:
        yield swapped
    finally:
        stop.set()
        swapped.per_place = told.get()
        swapped.times = sum(swapped.per_place.values())
        process.join(10)


def _swap(swaps: Swaps, stop: Event, told: multiprocessing.SimpleQueue[dict[str, int]]) -> None:
    draw, counts = random.Random(swaps.seed), dict.fromkeys((str(place) for place, _ in swaps.places), 0)
    told.put({})
    while not stop.is_set():
        place, others = draw.choice(swaps.places)
        counts[str(place)] += _once(place, draw.choice(others), draw.random() * _LONGEST_S)
        time.sleep(draw.random() * _LONGEST_S / 4)
    told.put(counts)


def _once(place: Path, other: Path, pause_s: float) -> bool:
    """Put a link in a directory's place for a while; whether that was possible."""
    away = place.with_name(f"{place.name}.away")
    moved = False
    with contextlib.suppress(OSError):
        place.rename(away)
        moved = True
    linked = False
    with contextlib.suppress(OSError):
        place.symlink_to(other)
        linked = True
        time.sleep(pause_s)
    with contextlib.suppress(OSError):
        if place.is_symlink():
            place.unlink()
    if moved:
        _back(away, place)
    return linked


def _back(away: Path, place: Path) -> None:
    """Put a directory back; what was made in its place meanwhile goes aside."""
    try:
        away.rename(place)
    except OSError:
        place.rename(place.with_name(f"{place.name}.late-{time.monotonic_ns()}"))
        away.rename(place)


def contents(directory: Path) -> dict[str, tuple[int, int, int, int, bytes]]:
    """Everything below a directory: mode, links, times of change of content and inode, and content, by name."""
    seen = {}
    for path in (directory, *sorted(directory.rglob("*"))):
        info = path.lstat()
        data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        seen[str(path)] = (info.st_mode, info.st_nlink, info.st_mtime_ns, info.st_ctime_ns, data)
    return seen
