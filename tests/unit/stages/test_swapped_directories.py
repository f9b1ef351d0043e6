"""Every directory on the way to the outputs is swapped for a link, at random, while a job publishes and cleans up."""

from __future__ import annotations

from pathlib import Path

from config.roots import Roots
from tests.swapped_publishing import publish_under_swaps
from tests.unit.stages.conftest import TinyRun

SEED, SECONDS = 20261130, 4.0


def test_nothing_is_written_outside_while_directories_are_swapped(tiny: TinyRun, tmp_path: Path) -> None:
    work = tmp_path / "work"
    ran = publish_under_swaps(tiny.request, Roots.only(tiny.base, tiny.run), work, seed=SEED, seconds=SECONDS)
    print(f"\nseed {SEED}: {ran.swapped.times} swaps, {dict(ran.ends)}")
    assert ran.changed == [], f"seed {SEED}"
    assert min(ran.swapped.per_place[str(work / "allowed" / name)] for name in ("a", "a/out")) > 5
    assert ran.ends["done"] > 5
    assert ran.ends.total() > ran.ends["done"], "some were hit"
