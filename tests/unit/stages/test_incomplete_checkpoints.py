"""A newest checkpoint whose adapter holds nothing: left out of ``latest`` and said, refused by its path."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import StageName
from tests.harness import RecordingReporter, run_stages
from tests.unit.stages.conftest import TinyRun


def emptied(tiny: TinyRun) -> Path:
    """A second, newer checkpoint as DeepSpeed ZeRO-3 leaves it: a header and nothing else."""
    newer = Path(shutil.copytree(tiny.checkpoint, tiny.run / "checkpoint-20"))
    header = b'{"__metadata__":{"format":"pt"}}'
    (newer / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return newer


@pytest.mark.parametrize("as_path", [True, False])
def test_latest_leaves_it_out_and_says_so(tiny: TinyRun, tmp_path: Path, as_path: bool) -> None:
    emptied(tiny)
    task = {"task_id": "t", "status": "completed", "base_model": str(tiny.base), "output_dir": str(tiny.run)}
    request = tiny.request(checkpoint=f"{tiny.run}/latest") if as_path else tiny.request(checkpoint="latest", task=task)
    reporter = RecordingReporter()
    done = run_stages(request, tmp_path / "scratch", until=StageName.PREPARE, reporter=reporter)
    assert done[StageName.PREPARE].facts["checkpoint_name"] == "checkpoint-10"
    [line] = [line for level, line in reporter.lines if level == "warning"]
    assert line.startswith("checkpoint-20 is newer than checkpoint-10, but cannot be packaged: ")
    assert "adapter_model.safetensors holds no values" in line


def test_its_path_is_refused_with_the_way_to_save_it(tiny: TinyRun, tmp_path: Path) -> None:
    newer = emptied(tiny)
    with pytest.raises(PackagingError) as refused:
        run_stages(tiny.request(checkpoint=newer), tmp_path / "scratch", until=StageName.PREPARE)
    assert refused.value.code is ErrorCode.ADAPTER_INVALID
    assert "holds no tensors" in refused.value.message
    assert "stage3_gather_16bit_weights_on_model_save" in (refused.value.remedy or "")
