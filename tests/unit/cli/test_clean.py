"""``clean``: what goes, what stays, and who is asked."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from config.roots import Roots
from tests.unit.cli.conftest import Ran
from worker.service.supervisor.scratch import make_scratch
from worker.service.supervisor.scratch_lock import acquire
from worker.storage.locks import FileLock

Cli = Callable[..., Ran]


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """A home with one file of every part, and a run with what a job left and what a user made."""
    for name in ("cache/x/files/w", "kernels/k", "demo/run/w", "seaweedfs/0.dat"):
        path = tmp_path / "home" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(8192))
    scratch = tmp_path / "run" / "package" / "checkpoint-9" / ".trainpack-20260101-000000-aaaaaa"
    make_scratch(scratch, Roots.anywhere())
    (scratch / "merged_model.gguf").write_bytes(bytes(8192))
    (scratch.parent / "merged_model.gguf").touch()
    (scratch.parent / ".trainpack-notes").mkdir()
    return scratch


def test_it_says_what_and_how_much_and_asks(cli: Cli, left: Path, tmp_path: Path) -> None:
    told = cli("clean", tmp_path / "run", "--json").document
    assert {one["part"] for one in told["found"]} == {"scratch", "cache", "demo", "storage"}
    assert all(one["size_bytes"] >= 8192 for one in told["found"])
    assert told["removed"] == []
    ran = cli("clean", tmp_path / "run")
    assert str(left) in ran.out
    assert "give --yes" in ran.err
    assert left.exists()


def test_outputs_and_what_someone_works_in_stay(cli: Cli, left: Path, tmp_path: Path) -> None:
    held = acquire(left)
    assert held is not None
    assert cli("clean", tmp_path / "run", "--only", "scratch", "--yes").code == 1
    assert (left / "merged_model.gguf").exists()
    os.close(held)
    assert cli("clean", tmp_path / "run", "--only", "scratch", "--yes").code == 0
    assert sorted(path.name for path in left.parent.iterdir()) == [".trainpack-notes", "merged_model.gguf"]
    assert (tmp_path / "home" / "seaweedfs" / "0.dat").exists()


def test_nothing_is_removed_under_a_stack_that_runs(cli: Cli, left: Path, tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "home" / "stack.lock")
    assert lock.try_acquire()
    assert cli("clean", "--yes", "--json").error["code"] == "service_start_failed"
    lock.release()
    assert cli("clean", "--only", "chache", "--json").error["message"].endswith("did you mean cache?")
    assert cli("clean", "--yes").code == 0
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["stack.lock"]
