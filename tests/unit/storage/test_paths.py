import errno
import os
from pathlib import Path

import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.disk import free_bytes, write_error
from config.roots import Roots
from worker.storage.paths import (
    check_bucket,
    check_disk_space,
    check_output_dir,
    ensure_output_dir,
)


def test_a_path_under_a_root_is_given_back_resolved(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "link").symlink_to("a")
    assert Roots.only(root).resolve(root / "link" / "new.gguf") == root / "a" / "new.gguf"


def test_a_root_may_itself_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "root").symlink_to("real")
    assert Roots.only(tmp_path / "root").resolve(tmp_path / "root" / "x") == tmp_path / "real" / "x"


@pytest.mark.parametrize("escape", ["root/../secret", "root/link/x", "rootish/x", "secret"])
def test_what_leads_out_of_the_roots_is_refused(tmp_path: Path, escape: str) -> None:
    for name in ("root", "secret", "rootish"):
        (tmp_path / name).mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(PackagingError, match="outside the directories") as caught:
        Roots.only(tmp_path / "root").resolve(tmp_path / escape)
    assert caught.value.code is ErrorCode.PATH_NOT_ALLOWED
    assert str(tmp_path / "secret" / "x") not in caught.value.message


def test_no_roots_allow_everything_and_an_empty_list_nothing(tmp_path: Path) -> None:
    assert Roots.anywhere().resolve(tmp_path) == tmp_path.resolve()
    with pytest.raises(PackagingError, match=r"\(none\)"):
        Roots.only().resolve(tmp_path)


def test_loops_relative_paths_and_nul_are_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path / "loop" / "x", "models/base", "/models/\0base"):
        with pytest.raises(PackagingError) as caught:
            Roots.anywhere().resolve(path)
        assert caught.value.code is ErrorCode.PATH_NOT_ALLOWED
        assert "\0" not in caught.value.message


def test_buckets_outside_the_list_are_refused() -> None:
    check_bucket("models", None)
    check_bucket("models", ("models",))
    with pytest.raises(PackagingError, match="bucket secrets is not one of those") as caught:
        check_bucket("secrets", ("models",))
    assert caught.value.code is ErrorCode.PATH_NOT_ALLOWED


def test_an_output_directory_is_made_and_a_mere_check_leaves_nothing(tmp_path: Path) -> None:
    wanted = tmp_path / "runs" / "42" / "package"
    assert check_output_dir(wanted, Roots.only(tmp_path)) == wanted
    assert list(tmp_path.iterdir()) == []
    assert ensure_output_dir(wanted, Roots.only(tmp_path)) == wanted
    assert list(wanted.iterdir()) == []


def test_a_check_keeps_an_existing_directory(tmp_path: Path) -> None:
    (tmp_path / "old.gguf").write_bytes(b"x")
    check_output_dir(tmp_path, Roots.anywhere())
    assert [path.name for path in tmp_path.iterdir()] == ["old.gguf"]


@pytest.mark.parametrize("place", ["file", "file/sub/package"])
def test_an_output_directory_that_cannot_be_is_refused_without_traces(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(PackagingError, match=r"Not a directory|not a directory|File exists") as caught:
        ensure_output_dir(tmp_path / place, Roots.anywhere())
    assert caught.value.code is ErrorCode.OUTPUT_DIR_NOT_WRITABLE
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PackagingError, match="Permission denied") as caught:
            ensure_output_dir(tmp_path / "package", Roots.anywhere())
    finally:
        tmp_path.chmod(0o700)
    assert caught.value.code is ErrorCode.OUTPUT_DIR_NOT_WRITABLE


def test_a_kernel_file_system_cannot_be_an_output_directory() -> None:
    with pytest.raises(PackagingError) as caught:
        ensure_output_dir("/proc/trainpack/package", Roots.anywhere())
    assert caught.value.code is ErrorCode.OUTPUT_DIR_NOT_WRITABLE


def test_needs_on_one_disk_are_added_up(tmp_path: Path) -> None:
    free = free_bytes(tmp_path / "not" / "there")
    half = int(free * 0.6)
    check_disk_space({tmp_path / "scratch": half})
    with pytest.raises(PackagingError, match=r"needed [0-9.]+ [KMGT]B, free [0-9.]+ [KMGT]B$") as caught:
        check_disk_space({tmp_path / "scratch": half, tmp_path / "outputs" / "x": half})
    assert caught.value.code is ErrorCode.DISK_SPACE_INSUFFICIENT
    assert caught.value.fields["needed_bytes"] == 2 * half


def test_the_reserve_counts_only_when_something_is_written(tmp_path: Path) -> None:
    reserve = 2 * free_bytes(tmp_path)
    check_disk_space({tmp_path: 0}, reserve_bytes=reserve)
    with pytest.raises(PackagingError, match=r"needed 1 byte \(and .* kept free\)"):
        check_disk_space({tmp_path: 1}, reserve_bytes=reserve)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, ErrorCode.DISK_SPACE_INSUFFICIENT),
        (errno.EDQUOT, ErrorCode.DISK_SPACE_INSUFFICIENT),
        (errno.EFBIG, ErrorCode.DISK_SPACE_INSUFFICIENT),
        (errno.EROFS, ErrorCode.OUTPUT_DIR_NOT_WRITABLE),
        (errno.EACCES, ErrorCode.OUTPUT_DIR_NOT_WRITABLE),
        (errno.EIO, None),
    ],
)
def test_system_errors_become_codes_by_their_number(tmp_path: Path, number: int, code: ErrorCode | None) -> None:
    error = write_error(tmp_path / "x.gguf", OSError(number, os.strerror(number)))
    assert (error and error.code) == code


def test_trying_to_write_never_has_a_name_that_a_killed_process_would_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def named(*_: object, **__: object) -> None:
        raise AssertionError("a file with a name was made")

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", named)
        assert ensure_output_dir(tmp_path / "out", Roots.anywhere()) == tmp_path / "out"
    real_open = os.open

    def older(path: str, flags: int, *rest: int, **at: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real_open(path, flags, *rest, **at)

    monkeypatch.setattr(os, "open", older)  # as NFS answers
    assert ensure_output_dir(tmp_path / "out", Roots.anywhere()) == tmp_path / "out"
    assert [*(tmp_path / "out").iterdir()] == []
