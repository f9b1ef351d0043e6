"""From the directory that a trainer leaves to the file: the same file whoever trained, by the stages of a job."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from api_client.contract.job import StageName
from api_client.contract.request import PackagingRequest
from api_client.runs.files import LocalRunFiles, RunFiles
from api_client.runs.kinds import CheckpointKind
from api_client.runs.pick import Picked, pick
from tests.field.trainers import LAYOUTS, Parts
from tests.harness import run_stages
from tests.tiny import tiny_base, tiny_checkpoint
from worker.models.gguf.reader import open_gguf

Tensors = dict[str, bytes]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    directory = tmp_path_factory.mktemp("parts")
    base = tiny_base(directory / "base")
    shutil.copytree(base, directory / "full")
    weights = load_file(base / "model.safetensors")
    save_file({name: tensor + 0.125 for name, tensor in weights.items()}, directory / "full" / "model.safetensors")
    return Parts(base, tiny_checkpoint(base, directory / "run"), directory / "full")


@pytest.fixture(scope="module")
def expected(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> dict[CheckpointKind, Tensors]:
    """What is right: the adapter merged, and the trained model as it is."""
    out = tmp_path_factory.mktemp("expected")
    adapter = PackagingRequest(
        template="merge", base_model=parts.base, checkpoint=parts.checkpoint, output_dir=out, evaluation="off"
    )
    return {
        CheckpointKind.ADAPTER: _converted(adapter, out / "adapter"),
        CheckpointKind.FULL: _converted(_full_request(parts.full, out), out / "full"),
    }


def _full_request(place: Path, out: Path) -> PackagingRequest:
    return PackagingRequest(
        template="custom", options={"merge_lora": False, "quantize": False}, base_model=place, output_dir=out,
        evaluation="off",
    )  # fmt: skip


def _converted(request: PackagingRequest, scratch: Path) -> Tensors:
    results = run_stages(request, scratch, until=StageName.CONVERT)
    with open_gguf(Path(results[StageName.CONVERT].artifacts[0].path)) as file:
        return {tensor.name: bytes(file.tensor_bytes(tensor)) for tensor in file.tensors}


def _open(place: str) -> RunFiles:
    return LocalRunFiles(Path(place))


def _picked(run: Path) -> Picked:
    return pick(str(run), _open)


@pytest.mark.parametrize("trainer", LAYOUTS)
def test_a_trainers_directory_is_packaged_as_what_was_trained(
    parts: Parts, expected: dict[CheckpointKind, Tensors], tmp_path: Path, trainer: str
) -> None:
    layout = LAYOUTS[trainer]
    run = layout.build(parts, tmp_path / "run")
    picked = _picked(run)
    assert picked.location == str(run / layout.means).rstrip("/")
    if picked.kind is CheckpointKind.FULL:
        request = _full_request(Path(picked.location), tmp_path / "out")
    else:
        request = PackagingRequest(
            template="merge", base_model=parts.base, checkpoint=picked.location, output_dir=tmp_path / "out",
            evaluation="off",
        )  # fmt: skip
    assert _converted(request, tmp_path / "scratch") == expected[picked.kind]


def test_the_page_lists_every_directory() -> None:
    page = (Path(__file__).parents[3] / "docs" / "trainers.md").read_text("utf-8")
    assert [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")][2:] == list(LAYOUTS)


def test_the_two_ways_of_training_make_different_files(expected: dict[CheckpointKind, Tensors]) -> None:
    assert expected[CheckpointKind.ADAPTER] != expected[CheckpointKind.FULL]
