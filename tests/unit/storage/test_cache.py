import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from worker.stop import StopRequested
from worker.storage.cache import Content, InputCache
from worker.storage.locks import FileLock


def content(name: str, size_bytes: int = 100) -> Content:
    return Content(f"s3://b/{name}", name, size_bytes, {"x": size_bytes})


def filler(size_bytes: int = 100, calls: list[Path] | None = None) -> Callable[[Path], None]:
    def fill(directory: Path) -> None:
        (directory / "x").write_bytes(b"x" * size_bytes)
        if calls is not None:
            calls.append(directory)

    return fill


@pytest.fixture
def cache(tmp_path: Path) -> InputCache:
    return InputCache(tmp_path / "cache", 250)


@pytest.fixture
def gone(tmp_path: Path) -> Path:
    """A holder that has ended."""
    return tmp_path / "scratch-of-a-finished-job"


def used_at(path: Path, moment: float) -> None:
    os.utime(path.parent / "record.json", (moment, moment))


def test_an_entry_is_filled_once(cache: InputCache) -> None:
    calls: list[Any] = []
    first = cache.get(content("a"), filler(calls=calls))
    assert cache.get(content("a"), filler(calls=calls)) == first
    assert len(calls) == 1
    assert (first / "x").stat().st_size == 100


def test_an_entry_that_lost_a_file_is_filled_again(cache: InputCache) -> None:
    calls: list[Any] = []
    files = cache.get(content("a"), filler(calls=calls))
    (files / "x").write_bytes(b"cut")
    cache.get(content("a"), filler(calls=calls))
    assert len(calls) == 2


def test_a_failed_fill_is_not_taken_for_a_finished_one(cache: InputCache) -> None:
    def fail(directory: Path) -> None:
        (directory / "x").write_bytes(b"x" * 100)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        cache.get(content("a"), fail)
    calls: list[Any] = []
    cache.get(content("a"), filler(calls=calls))
    assert (calls[0] / "x").exists(), "what had arrived is there to go on from"


def test_the_least_recently_used_go_first(cache: InputCache, gone: Path) -> None:
    old, older = (cache.get(content(name), filler(), holder=gone) for name in ("old", "older"))
    used_at(old, 2000)
    used_at(older, 1000)
    cache.get(content("new"), filler(), holder=gone)
    assert not older.exists()
    assert old.exists()


def test_asking_again_counts_as_use(cache: InputCache, gone: Path) -> None:
    first, second = (cache.get(content(name), filler(), holder=gone) for name in ("first", "second"))
    used_at(first, 1000)
    used_at(second, 2000)
    cache.get(content("first"), filler(), holder=gone)
    cache.get(content("new"), filler(), holder=gone)
    assert first.exists()
    assert not second.exists()


def test_what_a_job_holds_stays_until_its_scratch_is_gone(cache: InputCache, tmp_path: Path, gone: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    held = cache.get(content("held"), filler(), holder=scratch)
    used_at(held, 1000)
    free = cache.get(content("free"), filler(), holder=gone)
    used_at(free, 2000)
    cache.get(content("new"), filler(), holder=gone)
    assert held.exists()
    assert not free.exists()
    scratch.rmdir()
    cache.get(content("newer"), filler(), holder=gone)
    assert not held.exists()


def test_without_a_holder_the_process_holds(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from worker.storage.cache import Content, InputCache
files = InputCache(Path({str(tmp_path)!r}), 250).get(
    Content("s3://b/theirs", "theirs", 200, {{"x": 3}}), lambda directory: (directory / "x").write_text("abc"))
print(files, flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    theirs = Path(process.stdout.readline().strip())
    cache = InputCache(tmp_path, 250)
    cache.get(content("a"), filler())
    assert theirs.exists(), "its process lives"
    process.communicate("")
    cache.get(content("b"), filler())
    assert not theirs.exists()


def test_an_entry_being_filled_is_left_alone_and_waited_for(cache: InputCache, gone: Path) -> None:
    entered, may_go = threading.Event(), threading.Event()

    def slow(directory: Path) -> None:
        entered.set()
        assert may_go.wait(10)
        filler()(directory)

    thread = threading.Thread(target=lambda: cache.get(content("slow", 100), slow, holder=gone))
    thread.start()
    assert entered.wait(10)
    cache.get(content("other", 200), filler(200), holder=gone)
    with pytest.raises(StopRequested):
        cache.get(content("slow"), filler(), should_stop=lambda: True)
    may_go.set()
    calls: list[Any] = []
    files = cache.get(content("slow"), filler(calls=calls), holder=gone)
    thread.join()
    assert (files / "x").exists()
    assert calls == []


def test_no_room_on_the_disk_is_said_before_anything_is_fetched(cache: InputCache) -> None:
    with pytest.raises(PackagingError, match=r"needed 1000000.0 TB|needed 1000.0 PB") as caught:
        cache.get(content("huge", 10**18), filler())
    assert caught.value.code is ErrorCode.DISK_SPACE_INSUFFICIENT


def test_locks_exclude_and_share(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with FileLock(path, shared=True):
        with FileLock(path, shared=True):
            assert not FileLock(path).try_acquire()
        assert not FileLock(path).try_acquire()
    free = FileLock(path)
    assert free.try_acquire()
    assert free.try_acquire(), "holding it twice is holding it once"
    assert not FileLock(path).try_acquire()
    free.release()
    free.release()
