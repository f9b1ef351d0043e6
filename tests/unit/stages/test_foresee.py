"""What a dry run says of a job, against what the job then makes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from api_client.contract.templates import BUILTIN_TEMPLATES
from api_client.disk import on_one_disk
from config.settings import Settings
from tests.harness import run_stages
from tests.unit.stages.conftest import TinyRun
from worker.local.foresee import foresee

SMALL = {"manifest.json", "SHA256SUMS"}


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    shared = Path("/dev/shm")
    if not shared.is_dir() or on_one_disk(shared, tmp_path):
        pytest.skip("this machine has one file system")
    with tempfile.TemporaryDirectory(dir=shared) as directory:
        yield Path(directory)


def test_names_and_sizes_are_those_that_come(tiny: TinyRun, tmp_path: Path) -> None:
    weights, store = tiny.base / "model.safetensors", tmp_path / "store"
    store.mkdir()
    weights.rename(store / weights.name)
    weights.symlink_to(store / weights.name)
    request = tiny.request(template="quantize_base", checkpoint=None, quant_types=["Q8_0", "Q4_0"])
    told = foresee(request, BUILTIN_TEMPLATES, Settings(home=tmp_path / "home"))
    assert not tiny.output.exists()
    run_stages(request, tmp_path / "scratch")
    made = {path.name: path.stat().st_size for path in tiny.output.iterdir()}
    assert set(told.files) == set(made)
    sized = {name: size for name, size in told.files.items() if size is not None}
    assert set(sized) == set(made) - SMALL
    # data to the byte; the header of a quantized file grows by a few keys
    assert all(0 <= made[name] - size < 1024 for name, size in sized.items())
    [disk] = told.disks
    assert disk.needed_bytes == sum(sized.values())
    assert 0 < told.usual_memory_bytes < told.memory_bytes


@pytest.mark.parametrize("keep", [True, False])
def test_scratch_on_another_disk_has_a_need_of_its_own(
    tiny: TinyRun, tmp_path: Path, other_disk: Path, keep: bool
) -> None:
    request = tiny.request(quant_types=["Q8_0"], keep_unquantized=keep)
    [alone] = foresee(request, BUILTIN_TEMPLATES, Settings(home=tmp_path / "home")).disks
    settings = Settings(home=tmp_path / "home", scratch_dir=other_disk)
    output, scratch = foresee(request, BUILTIN_TEMPLATES, settings).disks
    assert (output.place, scratch.place) == (str(tmp_path), str(other_disk))
    # by the adapter's file, whose header the disk does not need
    assert scratch.needed_bytes == pytest.approx(alone.needed_bytes, abs=4096), "all is written to scratch"
    assert output.needed_bytes is not None
    assert scratch.needed_bytes is not None
    assert output.needed_bytes < scratch.needed_bytes
    run_stages(request, tmp_path / "scratch")
    made = sum(path.stat().st_size for path in tiny.output.iterdir() if path.name not in SMALL)
    assert made <= output.needed_bytes < made * 1.5, "a merge is told with its adapter on top"
