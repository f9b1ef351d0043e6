"""Publishing, writing and cleaning up again and again, while every directory on the way is swapped for a link."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from api_client.contract.errors import PackagingError
from api_client.contract.job import StageName
from api_client.contract.request import PackagingRequest
from config.roots import Roots
from tests.harness import run_stages, stage_settings
from tests.swapping import Swapped, Swaps, contents, swapping
from worker.service.supervisor.scratch import make_scratch, remove_scratch, sweep_output
from worker.service.supervisor.scratch_lock import LOCK_FILE, acquire
from worker.storage.atomic import atomic_write_text
from worker.storage.held import bind_writing

JOB = "20260101-000000-aaaaaa"
SCRATCH = f".trainpack-{JOB}"
NAMES = ("merged_model.gguf", "manifest.json", "SHA256SUMS", "quality.json", LOCK_FILE, "overlay", "x.partial")
LEFT = ".merged_model.gguf.abcdefgh.tmp"


@dataclass
class SwappedRun:
    """What came of it.

    Attributes:
        swapped: The swaps.
        ends: How the actions ended, by code.
        changed: Files outside, and files of others inside, that are not as they were.
    """

    swapped: Swapped
    ends: Counter[str] = field(default_factory=Counter)
    changed: list[str] = field(default_factory=list)


def publish_under_swaps(
    request: Callable[..., PackagingRequest], inputs: Roots, work: Path, *, seed: int, seconds: float
) -> SwappedRun:
    """Run it.

    Args:
        request: Makes a request with fields as given.
        inputs: Where the request's inputs lie.
        work: An empty directory; what may be written lies in ``allowed``, what may not beside it.
        seed: Of the swaps.
        seconds: How long.
    """
    allowed, outside = work / "allowed", work / "outside"
    out = allowed / "a" / "out"
    scratch, other = out / SCRATCH, out / ".trainpack-20260101-000000-bbbbbb"
    scratch.mkdir(parents=True)
    asked = request(template="merge", output_dir=out)
    roots = inputs.also(allowed)
    settings = stage_settings(work / "home", allowed_roots=roots, verify_load=False)
    done = run_stages(asked, scratch, until=StageName.VERIFY, settings=settings, job_id=JOB)
    victims = {name: foreign(outside / name) for name in ("out", SCRATCH)}
    theirs = foreign(allowed / "theirs")
    (theirs / LEFT).unlink()  # a worker's own names in a directory where it may write
    shutil.rmtree(theirs / SCRATCH)
    places = [(out.parent, (outside,)), (out, (victims["out"], theirs))]
    places += [(directory, (victims[SCRATCH],)) for directory in (scratch, other)]
    places += [(out / name, (victims["out"] / name,)) for name in NAMES[:3]]
    places += [(scratch / name, (victims[SCRATCH] / name,)) for name in (LOCK_FILE, "x.partial", "x.journal")]
    before = contents(outside) | {name: seen for name, seen in contents(theirs).items() if Path(name).is_file()}
    bind_writing(roots.also(work / "home"))
    ends: Counter[str] = Counter()
    try:
        with swapping(Swaps(seed, places)) as swapped:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                ends[end_of(lambda: run_stages(asked, scratch, settings=settings, done=done, job_id=JOB))] += 1
                ends[end_of(lambda: atomic_write_text(scratch / "x", "y"))] += 1
                ends[end_of(lambda: sweep_output(str(out), NAMES))] += 1
                ends[end_of(lambda: clean_up(other, roots))] += 1
    finally:
        bind_writing(Roots.anywhere())
    after = contents(outside) | contents(theirs)
    new = [name for name in after if name not in before and Path(name).is_relative_to(outside)]
    return SwappedRun(swapped, ends, [*new, *(name for name, seen in before.items() if after.get(name) != seen)])


def foreign(directory: Path) -> Path:
    """A directory whose files are somebody else's, with every name that a job uses."""
    for below in (directory, directory / SCRATCH):
        below.mkdir(parents=True)
        for name in (*NAMES, "config.json", LEFT):
            (below / name).write_text(f"somebody else's {name}")
            os.utime(below / name, (1e9, 1e9))
    return directory


def end_of(action: Callable[[], Any]) -> str:
    """How something ended; what the system says of names that vanish under it is an end like any other."""
    try:
        action()
    except (PackagingError, OSError) as error:
        return error.code.value if isinstance(error, PackagingError) else type(error).__name__
    return "done"


def clean_up(scratch: Path, roots: Roots) -> None:
    """What a supervisor does around a stage: make, hold, fill, remove."""
    make_scratch(scratch, roots)
    lock = acquire(scratch)
    atomic_write_text(scratch / "x.partial", "mine")
    remove_scratch(scratch)
    if lock is not None:
        os.close(lock)
