"""A base model whose files are links, as a model store lays it out: what is followed says one value, everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import StageName
from config.roots import Roots
from tests.harness import run_stages, stage_settings
from tests.unit.stages.conftest import TinyRun


def linked(tiny: TinyRun, store: Path) -> None:
    """Move every file of the base model into a store and leave links."""
    store.mkdir()
    for path in sorted(tiny.base.iterdir()):
        path.rename(store / path.name)
        path.symlink_to(store / path.name)


def test_without_roots_every_file_of_a_linked_model_is_read(tiny: TinyRun, tmp_path: Path) -> None:
    linked(tiny, tmp_path / "store")
    done = run_stages(tiny.request(), tmp_path / "scratch", until=StageName.CONVERT)
    [model] = done[StageName.CONVERT].artifacts
    assert model.size_bytes > 0


@pytest.mark.parametrize("alone", ["tokenizer.model", "config.json"])
def test_links_out_of_the_roots_are_refused_whichever_file_it_is(tiny: TinyRun, tmp_path: Path, alone: str) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (tiny.base / alone).rename(store / alone)
    (tiny.base / alone).symlink_to(store / alone)
    settings = stage_settings(tmp_path / "home", allowed_roots=Roots.only(tiny.base, tiny.run, tiny.output))
    with pytest.raises(PackagingError) as refused:
        run_stages(tiny.request(), tmp_path / "scratch", until=StageName.PREPARE, settings=settings)
    assert refused.value.code is ErrorCode.PATH_NOT_ALLOWED
    assert str(tiny.base / alone) in refused.value.message
    assert str(store) not in refused.value.message
