"""Convert quantizes what it writes: one pass, the same bytes, and each stage answers for what was its own before."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.fit import AnyQuantType
from api_client.contract.job import StageName
from api_client.contract.quant_types import QuantType
from tests.harness import RecordingReporter, run_stages
from tests.unit.stages.conftest import TinyRun
from worker.models.adapters.overlay import Overlay
from worker.models.convert.evaluate import Evaluator
from worker.models.convert.metadata import Naming, describe
from worker.models.convert.pipeline import convert
from worker.models.imatrix.load import load_imatrix
from worker.models.quantize.engine import quantize_file
from worker.models.quantize.source import FileSource
from worker.stages.context import StageResult
from worker.stages.merge import OVERLAY
from worker.stop import StopRequested
from worker.storage.checksums import sha256_file

TYPES = ["Q8_0", "Q4_K_M"]


def made(results: dict[StageName, StageResult]) -> dict[str, str]:
    files = [*results[StageName.CONVERT].artifacts, *results[StageName.QUANTIZE].artifacts]
    assert all(sha256_file(Path(file.path)) == file.sha256 for file in files)
    return {file.name: file.sha256 for file in files}


def one_after_the_other(tiny: TinyRun, directory: Path, overlay: Path, matrix: Path | None = None) -> dict[str, str]:
    """The files as two passes make them, each by itself."""
    directory.mkdir()
    naming = Naming(describe(tiny.base, checkpoint_dir=tiny.checkpoint, adapter_base=str(tiny.base)))
    file = directory / "merged_model.gguf"
    sha256 = convert(tiny.base, file, overlay=Overlay.load(overlay), naming=naming).sha256
    outputs: dict[AnyQuantType, Path] = {QuantType(kind): directory / f"merged_model-{kind}.gguf" for kind in TYPES}
    result = quantize_file(file, outputs, imatrix=load_imatrix(matrix) if matrix else None)
    return {file.name: sha256} | {outcome.path.name: outcome.sha256 for outcome in result.outcomes.values()}


def test_one_pass_makes_the_bytes_of_two_and_reads_nothing_twice(
    tiny: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated: list[Any] = []
    evaluate = Evaluator.bytes_of

    def noted(evaluator: Evaluator, node: Any) -> Any:
        evaluated.append(node)
        return evaluate(evaluator, node)

    monkeypatch.setattr(Evaluator, "bytes_of", noted)
    read: list[str] = []
    monkeypatch.setattr(FileSource, "read_rows", lambda _self, tensor, *_: read.append(tensor.name))
    reporter = RecordingReporter()
    request, scratch = tiny.request(quant_types=TYPES), tmp_path / "scratch"
    results = run_stages(request, scratch, until=StageName.QUANTIZE, reporter=reporter)
    assert read == []
    assert len(evaluated) == sum(results[StageName.CONVERT].artifacts[0].facts["mixture"].values())
    facts = results[StageName.QUANTIZE].facts
    assert (facts["made"], facts["taken_over"]) == (TYPES, [])
    told = [message.partition(":")[0] for _, message in reporter.lines if "bits per weight" in message]
    assert told == [f"merged_model-{kind}.gguf" for kind in TYPES]
    monkeypatch.undo()
    assert made(results) == one_after_the_other(tiny, tmp_path / "apart", scratch / OVERLAY)


def test_a_given_matrix_is_no_reason_to_wait(tiny: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields: dict[str, Any] = {"quant_types": TYPES, "imatrix": {"mode": "compute", "chunks": 1}}
    computed = run_stages(tiny.request(**fields), tmp_path / "computed", until=StageName.QUANTIZE)
    given = Path(computed[StageName.IMATRIX].artifacts[0].path)
    monkeypatch.setattr(FileSource, "read_rows", lambda *_: pytest.fail("the unquantized file is read"))
    request, scratch = tiny.request(quant_types=TYPES, imatrix=str(given)), tmp_path / "scratch"
    results = run_stages(request, scratch, until=StageName.QUANTIZE)
    monkeypatch.undo()
    assert made(results) == one_after_the_other(tiny, tmp_path / "apart", scratch / OVERLAY, given)
    assert made(results) == made(computed)


def test_a_stop_in_the_middle_of_the_pass_goes_on(tiny: TinyRun, tmp_path: Path) -> None:
    request, scratch = tiny.request(quant_types=TYPES), tmp_path / "scratch"
    done = run_stages(request, scratch, until=StageName.MERGE)
    reporter = RecordingReporter()
    reporter.stop = lambda: len(reporter.steps) > 8
    with pytest.raises(StopRequested):
        run_stages(request, scratch, until=StageName.CONVERT, done=done, reporter=reporter)
    names = {"merged_model", *(f"merged_model-{kind}" for kind in TYPES)}
    assert {path.name for path in scratch.glob("*.partial")} == {f"{name}.gguf.partial" for name in names}
    results = run_stages(request, scratch, until=StageName.QUANTIZE, done=done)
    assert made(results) == one_after_the_other(tiny, tmp_path / "apart", scratch / OVERLAY)
    assert results[StageName.CONVERT].facts["resumed_bytes"] > 0
    assert all(file.facts["resumed_tensors"] > 0 for file in results[StageName.QUANTIZE].artifacts)
    assert not [*scratch.glob("*.partial"), *scratch.glob("*.journal")]


FULL_DISK = """
import json, resource, sys
from pathlib import Path
from api_client.contract.job import StageName
from api_client.contract.request import PackagingRequest
from tests.harness import run_stages
from worker.service.supervisor.child import as_packaging_error
request = PackagingRequest(**json.loads(sys.argv[1]))
scratch = Path(sys.argv[2])
done = run_stages(request, scratch, until=StageName.MERGE)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
try:
    run_stages(request, scratch, until=StageName.CONVERT, done=done)
except Exception as error:
    print(json.dumps({"told": as_packaging_error(error).to_dict()}))
"""


def test_where_the_disk_fills_what_is_finished_is_kept(
    tiny: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit lies between the types and the unquantized file, which is the largest."""
    request, scratch = tiny.request(quant_types=TYPES), tmp_path / "scratch"
    whole = run_stages(request, tmp_path / "whole", until=StageName.QUANTIZE)
    limit = whole[StageName.CONVERT].artifacts[0].size_bytes - 4096
    assert limit > max(file.size_bytes for file in whole[StageName.QUANTIZE].artifacts)
    command = [sys.executable, "-c", FULL_DISK, request.model_dump_json(exclude_unset=True), str(scratch), str(limit)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    told = json.loads(done.stdout.splitlines()[-1])["told"]
    assert told["code"] == "disk_space_insufficient"
    assert {path.name for path in scratch.glob("*.gguf*")} == {f"merged_model-{kind}.gguf" for kind in TYPES}
    before = {path.name: path.stat().st_mtime_ns for path in scratch.glob("*.gguf")}
    results = run_stages(request, scratch, until=StageName.QUANTIZE)
    assert made(results) == made(whole)
    assert {name: (scratch / name).stat().st_mtime_ns for name in before} == before, "not made again"


def test_a_type_that_fails_is_quantize_s_to_tell(tiny: TinyRun, tmp_path: Path) -> None:
    """As ever the others are finished, and the unquantized file is whole."""
    path = tiny.base / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = 3e38
    save_file(weights, path, metadata={"format": "pt"})
    fields: dict[str, Any] = {"template": "quantize_base", "checkpoint": None}
    request, scratch = tiny.request(quant_types=["Q4_0", "F32"], **fields), tmp_path / "scratch"
    done = run_stages(request, scratch, until=StageName.CONVERT)
    with pytest.raises(PackagingError) as refused:
        run_stages(request, scratch, until=StageName.QUANTIZE, done=done)
    assert refused.value.code is ErrorCode.WEIGHTS_NOT_FINITE
    assert {file.name for file in scratch.glob("*.gguf")} == {"base.gguf", "base-F32.gguf"}


def test_weights_that_are_no_numbers_are_converted_and_not_quantized(tiny: TinyRun, tmp_path: Path) -> None:
    path = tiny.base / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    fields: dict[str, Any] = {"template": "quantize_base", "checkpoint": None}
    request, scratch = tiny.request(quant_types=["Q4_0"], **fields), tmp_path / "scratch"
    done = run_stages(request, scratch, until=StageName.CONVERT)
    with pytest.raises(PackagingError) as refused:
        run_stages(request, scratch, until=StageName.QUANTIZE, done=done)
    assert refused.value.code is ErrorCode.WEIGHTS_NOT_FINITE
    assert {file.name for file in scratch.glob("*.gguf")} == {"base.gguf"}
