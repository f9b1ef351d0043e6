"""One rule for file systems without locks, and one place that knows it."""

from __future__ import annotations

import ast
import errno
import fcntl
import os
from pathlib import Path

import pytest

from worker.service.supervisor import scratch_lock
from worker.storage.locks import DirectoryLock, FileLock, is_surely_free, try_lock
from worker.storage.partial import PartialFile
from worker.storage.temporaries import remove_stale_temporaries

SOURCES = Path(__file__).parents[3]
NO_LOCKS = [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL]


@pytest.fixture(params=NO_LOCKS, ids=lambda number: errno.errorcode[number])
def without_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that has no locks, which no machine of ours has."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_only_one_module_locks() -> None:
    locking = set()
    for path in (SOURCES / "worker").rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text("utf-8")))
        if any(isinstance(node, ast.Attribute) and node.attr in ("flock", "lockf") for node in nodes):
            locking.add(str(path.relative_to(SOURCES)))
    assert locking == {"worker/storage/locks.py"}


def test_without_locks_everybody_holds_in_name_only(without_locks: None, tmp_path: Path) -> None:
    with FileLock(tmp_path / "lock"), DirectoryLock(tmp_path):
        pass
    held = scratch_lock.acquire(tmp_path)
    assert held is not None
    os.close(held)
    partial = PartialFile(tmp_path / "x", fingerprint="f")
    partial.open()
    partial.claim(10, 0, [{"n": 1}])
    partial.suspend()
    assert (tmp_path / "x.journal").exists()


def test_without_locks_nothing_of_a_writer_who_may_live_is_removed(without_locks: None, tmp_path: Path) -> None:
    left = tmp_path / ".x.00ff00ff.tmp"
    left.touch()
    remove_stale_temporaries(tmp_path / "x", age_s=-1)
    assert left.exists()


def test_another_error_is_none_of_a_missing_lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(descriptor: int, operation: int) -> None:
        raise OSError(errno.EIO, "io")

    monkeypatch.setattr(fcntl, "flock", fail)
    with (tmp_path / "x").open("wb") as file:
        for ask in (try_lock, is_surely_free):
            with pytest.raises(OSError, match="io"):
                ask(file.fileno())


def test_a_holder_is_seen(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as mine, (tmp_path / "x").open("rb") as other:
        assert is_surely_free(mine.fileno())
        assert not try_lock(other.fileno())
        assert not is_surely_free(other.fileno())
