"""Where jobs may work is one value: built by the settings, the same in the stage's process."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from api_client.contract.errors import PackagingError
from config.roots import Roots
from config.settings import load_settings


def test_unset_is_anywhere_and_empty_is_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert load_settings({}).allowed_roots == Roots.anywhere()
    monkeypatch.setenv("TRAINPACK_ALLOWED_ROOTS", "")
    nowhere = load_settings().allowed_roots
    assert nowhere == Roots.only()
    with pytest.raises(PackagingError, match=r"\(none\)"):
        nowhere.resolve(tmp_path)


@pytest.mark.parametrize("roots", [Roots.anywhere(), Roots.only(), Roots.only(Path("/data"), Path("/runs"))])
def test_the_stage_s_process_has_the_same(roots: Roots, tmp_path: Path) -> None:
    settings = load_settings({}, home=tmp_path, allowed_roots=roots).for_stages()
    assert pickle.loads(pickle.dumps(settings)).allowed_roots == roots


def test_further_directories_bound_nobody_who_was_free(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert Roots.anywhere().also(tmp_path / "a").resolve(tmp_path) == tmp_path
    assert Roots.only().also(tmp_path / "a").resolve(tmp_path / "a" / "x") == tmp_path / "a" / "x"


def test_a_link_out_is_told_from_a_path_outside(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path)
    roots = Roots.only(tmp_path / "in")
    for path, fact in ((tmp_path / "in" / "link", "leads outside"), (tmp_path / "other", "is outside")):
        with pytest.raises(PackagingError, match=fact):
            roots.resolve(path)
