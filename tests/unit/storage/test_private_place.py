from __future__ import annotations

import os
from pathlib import Path

import pytest

from worker.storage.private_place import is_open, others_write


def test_a_directory_of_one_s_own_is_private_until_others_may_write(tmp_path: Path) -> None:
    inner = tmp_path / "home" / "kernels"
    inner.mkdir(parents=True)
    assert others_write(inner) is None
    assert others_write(inner / "not yet there") is None
    inner.chmod(0o777)
    assert others_write(inner) == inner
    inner.chmod(0o1777)
    assert others_write(inner) == inner, "anyone may put a file there"
    inner.chmod(0o755)
    (tmp_path / "home").chmod(0o777)
    assert others_write(inner) == tmp_path / "home", "anyone may put another directory in its place"
    (tmp_path / "home").chmod(0o1777)
    assert others_write(inner) is None


def test_a_link_counts_as_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path / "open")
    assert others_write(tmp_path / "link") == tmp_path / "open"


def test_a_group_of_others_is_others(tmp_path: Path) -> None:
    def info(mode: int, uid: int, gid: int) -> os.stat_result:
        return os.stat_result((mode, 0, 0, 1, uid, gid, 0, 0, 0, 0))

    own, stranger = os.geteuid(), os.geteuid() + 4711
    assert not is_open(info(0o755, own, stranger))
    assert is_open(info(0o775, own, stranger))
    assert is_open(info(0o755, stranger, stranger))
    assert not is_open(info(0o775, 0, 0))
    assert is_open(info(0o777, 0, 0))


@pytest.mark.parametrize("spoil", ["directory", "file"])
def test_code_that_others_could_have_put_there_is_not_taken(tmp_path: Path, spoil: str) -> None:
    from worker.models.kernels.code_cache import kept

    made: list[bytes] = []

    def make() -> bytes:
        made.append(b"code")
        return b"code"

    cache = tmp_path / "kernels"
    for _ in range(2):
        assert kept("name", ("target",), cache, make) == b"code"
    assert len(made) == 1
    [file] = cache.iterdir()
    (cache if spoil == "directory" else file).chmod(0o777)
    assert kept("name", ("target",), cache, make) == b"code"
    assert len(made) == 2
