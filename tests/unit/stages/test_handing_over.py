"""What a stage is handed: nothing that it needs may be missing without a word."""

from __future__ import annotations

from pathlib import Path

import pytest

from api_client.errors import ErrorCode, PackagingError
from api_client.job import StageName
from tests.harness import run_stages
from tests.unit.stages.conftest import TinyRun
from worker.stages.context import StageResult


@pytest.mark.parametrize("stage", [StageName.CONVERT, StageName.IMATRIX])
def test_a_missing_overlay_is_never_taken_for_no_adapter(tiny: TinyRun, tmp_path: Path, stage: StageName) -> None:
    request = tiny.request(quant_types=["IQ2_M"], imatrix={"chunks": 1})
    done = dict(run_stages(request, tmp_path / "scratch", until=StageName.CONVERT))
    done[StageName.MERGE] = StageResult()
    if stage is StageName.CONVERT:
        del done[StageName.CONVERT]
    with pytest.raises(PackagingError) as refused:
        run_stages(request, tmp_path / "scratch", until=stage, done=done)
    assert refused.value.code is ErrorCode.INTERNAL_ERROR
    assert refused.value.fields == {"stage": stage.value, "kind": "overlay"}
