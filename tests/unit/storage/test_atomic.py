import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from worker.stop import StopRequested
from worker.storage import temporaries
from worker.storage.atomic import AtomicFile, atomic_write_bytes, atomic_write_text, place_file

OTHER_DISK = Path("/dev/shm")  # a second file system, where a hard link is impossible


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_file_appears_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"old")
    with AtomicFile(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["model.gguf"]


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), AtomicFile(path) as file:  # noqa: PT012 - the body is the subject
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["model.gguf"]


def test_permissions_follow_mode_and_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        atomic_write_text(tmp_path / "open", "x")
        atomic_write_text(tmp_path / "secret", "密", mode=0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "open").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "secret").read_text("utf-8") == "密"


def test_a_full_disk_met_while_writing_has_its_own_code(tmp_path: Path) -> None:
    with (
        pytest.raises(PackagingError, match="full") as caught,
        Path("/dev/full").open("wb", buffering=0) as full,
        AtomicFile(tmp_path / "x"),
    ):
        full.write(b"x")
    assert caught.value.code is ErrorCode.DISK_SPACE_INSUFFICIENT
    assert names(tmp_path) == []


def test_other_errors_of_the_body_stay_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), AtomicFile(tmp_path / "x"):
        (tmp_path / "missing").read_bytes()


def test_a_missing_directory_is_not_writable(tmp_path: Path) -> None:
    with pytest.raises(PackagingError) as caught:
        atomic_write_bytes(tmp_path / "gone" / "x", b"")
    assert caught.value.code is ErrorCode.OUTPUT_DIR_NOT_WRITABLE


def test_a_directory_in_the_way_is_reported_and_nothing_left(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(PackagingError) as caught:
        atomic_write_bytes(tmp_path / "x", b"1")
    assert caught.value.code is ErrorCode.OUTPUT_DIR_NOT_WRITABLE
    assert names(tmp_path) == ["x"]


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from worker.storage.atomic import AtomicFile
with AtomicFile(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_no_final_name_and_the_next_one_tidies_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model[1].gguf"
    done = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = names(tmp_path)
    assert left.startswith(".model[1].gguf.")

    atomic_write_bytes(path, b"1")
    assert names(tmp_path) == [left, "model[1].gguf"], "too fresh to be called stale"

    monkeypatch.setattr(temporaries, "STALE_AFTER_S", -1.0)
    with AtomicFile(path) as held:
        held.write(b"2")
        atomic_write_bytes(path, b"3")
        assert len(names(tmp_path)) == 2, "the dead writer's file is gone, the living one's is not"
    assert path.read_bytes() == b"2"
    assert names(tmp_path) == ["model[1].gguf"]


def test_placing_links_on_one_disk_and_replaces(tmp_path: Path) -> None:
    source, final = tmp_path / "scratch.gguf", tmp_path / "out" / "model.gguf"
    final.parent.mkdir()
    source.write_bytes(b"new")
    final.write_bytes(b"old")
    seen: list[Any] = []
    place_file(source, final, report=seen.append)
    assert final.read_bytes() == b"new"
    assert final.samefile(source)
    assert seen == [3]
    place_file(source, final)
    assert names(final.parent) == ["model.gguf"], "placing twice leaves no second link"


def test_placing_a_link_places_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"x")
    (tmp_path / "link").symlink_to("real")
    place_file(tmp_path / "link", tmp_path / "final")
    assert not (tmp_path / "final").is_symlink()


@pytest.mark.skipif(not OTHER_DISK.is_dir(), reason="no second file system")
def test_placing_copies_across_disks_and_stops_clean(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = OTHER_DISK / f"trainpack-{os.getpid()}"
    source.write_bytes(b"x" * 5_000_000)
    try:
        if source.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("one file system")
        seen: list[Any] = []
        place_file(source, tmp_path / "model.gguf", report=seen.append)
        assert (tmp_path / "model.gguf").read_bytes() == source.read_bytes()
        assert seen[-1] == 5_000_000
        with pytest.raises(StopRequested):
            place_file(source, tmp_path / "other.gguf", should_stop=lambda: True)
        assert names(tmp_path) == ["model.gguf"]
    finally:
        source.unlink()


def test_placing_what_is_missing_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        place_file(tmp_path / "missing", tmp_path / "final")
