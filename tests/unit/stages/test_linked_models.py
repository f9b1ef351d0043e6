"""A base model whose files are links, as a model store lays it out: what is followed says one value, everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import StageName
from config.roots import Roots
from tests.harness import run_stages, stage_settings
from tests.unit.stages.conftest import TinyRun
from worker.models.gguf.reader import open_gguf
from worker.storage.checksums import sha256_file


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


def tensors(path: Path) -> dict[str, bytes]:
    with open_gguf(path) as file:
        return {tensor.name: bytes(file.tensor_bytes(tensor)) for tensor in file.tensors}


def test_a_model_in_the_form_of_the_hubs_cache_is_packaged_as_any_other(tiny: TinyRun, tmp_path: Path) -> None:
    """The files lie in ``blobs`` by their digests, and a snapshot leads to them by their names."""
    places = []
    for source in (tiny.base, tiny.checkpoint):
        cache = tmp_path / "hub" / f"models--tiny--{source.name}"
        (snapshot := cache / "snapshots" / ("0" * 40)).mkdir(parents=True)
        (cache / "blobs").mkdir()
        for path in sorted(source.iterdir()):
            blob = cache / "blobs" / sha256_file(path)
            blob.write_bytes(path.read_bytes())
            (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
        places.append(snapshot)
    base, checkpoint = places
    cached = tiny.request(base_model=base, checkpoint=checkpoint, output_dir=tmp_path / "out")
    plain = run_stages(tiny.request(output_dir=tmp_path / "plain"), tmp_path / "scratch-plain")
    linked = run_stages(cached, tmp_path / "scratch")
    names = {artifact.name for artifact in plain[StageName.PUBLISH].artifacts}
    assert names == {artifact.name for artifact in linked[StageName.PUBLISH].artifacts}
    for name in names:
        if name.endswith(".gguf"):
            assert tensors(tmp_path / "out" / name) == tensors(tmp_path / "plain" / name)
    inputs = json.loads((tmp_path / "out" / "manifest.json").read_text())["inputs"]
    assert [*inputs["base_model"]["files"]] == ["model.safetensors"]
    assert [*inputs["adapter"]["files"]] == ["adapter_model.safetensors"]


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
