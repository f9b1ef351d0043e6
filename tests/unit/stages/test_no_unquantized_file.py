"""Where nobody wants the unquantized file it is never written, and everything else is as if it had been."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import ArtifactKind, StageName
from api_client.contract.quality import QualityReport, StepState, StepWord
from tests.harness import RecordingReporter, run_stages, stage_settings
from tests.tiny import TEXT, tiny_base, tiny_checkpoint
from tests.unit.stages.conftest import TinyRun
from worker.models.checkpoint import open_base_model
from worker.stages.context import StageResult
from worker.stop import StopRequested
from worker.storage.checksums import sha256_file

TYPES = ["Q8_0", "Q4_K_M"]


class Watcher(RecordingReporter):
    """Notes every file of a scratch directory whenever a stage says something, and what they take together."""

    scratch: Path
    names: set[str]
    most_bytes = 0

    def __init__(self, scratch: Path, **fields: Any) -> None:
        super().__init__(**fields)
        self.scratch, self.names = scratch, set()

    def look(self) -> None:
        files = [path for path in self.scratch.rglob("*") if path.is_file() and "home" not in path.parts]
        self.names |= {path.name for path in files}
        self.most_bytes = max(self.most_bytes, sum(path.stat().st_size for path in files))

    def log(self, message: str, *, level: str = "info", **fields: Any) -> None:
        self.look()
        super().log(message, level=level, **fields)

    def progress(self, done: float, total: float, unit: str, detail: str = "") -> None:
        self.look()
        super().progress(done, total, unit, detail)


def digests(results: dict[StageName, StageResult]) -> dict[str, str]:
    made = results[StageName.QUANTIZE].artifacts
    assert all(sha256_file(Path(artifact.path)) == artifact.sha256 for artifact in made)
    return {artifact.name: artifact.sha256 for artifact in made}


@pytest.mark.parametrize("case", ["merged", "a trained head of a tied model", "base alone", "with a matrix computed"])
def test_files_are_the_same_bytes_and_the_disk_holds_no_unquantized_one(
    tiny: TinyRun, tmp_path: Path, case: str
) -> None:
    fields: dict[str, Any] = {"quant_types": TYPES}
    if case == "a trained head of a tied model":
        base = tiny_base(tmp_path / "tied", tied=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT warns that such a head is untied
            fields |= {"base_model": base, "checkpoint": tiny_checkpoint(base, tmp_path, modules_to_save=["lm_head"])}
    elif case == "base alone":
        fields |= {"template": "quantize_base", "checkpoint": None}
    elif case == "with a matrix computed":
        fields |= {"quant_types": ["IQ2_XS", "Q8_0"], "imatrix": {"chunks": 1}}
    kept = run_stages(tiny.request(**fields), tmp_path / "kept", until=StageName.QUANTIZE)
    scratch = tmp_path / "scratch"
    watcher = Watcher(scratch)
    settings = stage_settings(tmp_path / "home")
    results = run_stages(tiny.request(**fields, keep_unquantized=False), scratch, reporter=watcher, settings=settings)
    assert digests(results) == digests(kept)
    assert [a.kind for a in results[StageName.CONVERT].artifacts] == [ArtifactKind.LAYOUT]
    unquantized = kept[StageName.CONVERT].artifacts[0]
    assert not {name for name in watcher.names if name.removesuffix(".partial") == unquantized.name}
    assert unquantized.name not in {path.name for path in tiny.output.iterdir()}
    made = sum(artifact.size_bytes for result in results.values() for artifact in result.artifacts)
    assert watcher.most_bytes <= made + 64 * 1024
    assert set(results[StageName.VERIFY].facts["loaded"]) == set(digests(results))
    spaces = [message for _, message in watcher.lines if message.startswith("Space: ")]
    assert len(spaces) == 1


def test_prepare_asks_for_the_room_that_is_taken(tiny: TinyRun, tmp_path: Path) -> None:
    needed: dict[bool, int] = {}

    class Listener(RecordingReporter):
        def log(self, message: str, *, level: str = "info", **fields: Any) -> None:
            if "needed_bytes" in fields:
                needed[keep] = fields["needed_bytes"]

    for keep in (True, False):
        request = tiny.request(quant_types=TYPES, keep_unquantized=keep)
        prepared = run_stages(request, tmp_path / str(keep), until=StageName.PREPARE, reporter=Listener())
    assert needed[True] - needed[False] == prepared[StageName.PREPARE].facts["model_bytes"]
    adapter = sum(path.stat().st_size for path in tiny.checkpoint.glob("*.safetensors"))
    results = run_stages(request, tmp_path / "run", until=StageName.QUANTIZE)
    made = sum(a.size_bytes for a in results[StageName.QUANTIZE].artifacts)
    assert abs(needed[False] - made - adapter) < 8192


def test_evaluate_traces_the_file_that_is_not_there(tiny: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n".join(TEXT * 60))
    reports = {}
    for keep in (True, False):
        request = tiny.request(
            quant_types=["Q8_0"],
            keep_unquantized=keep,
            output_dir=tmp_path / f"out-{keep}",
            evaluation={"level": "quick", "text": str(tmp_path / "text.txt")},
        )
        results = run_stages(request, tmp_path / f"scratch-{keep}")
        (quality,) = results[StageName.EVALUATE].artifacts
        reports[keep] = QualityReport.model_validate_json(Path(quality.path).read_text())
    assert reports[False].origin == reports[True].origin
    states = {step.step: step.state for step in reports[False].origin}
    assert {states[step] for step in (StepWord.MERGE, StepWord.CONVERSION, StepWord.LOGITS)} == {StepState.SAME}
    kept = {file.name: file for file in reports[True].files}
    assert [file.name for file in reports[False].files] == ["merged_model-Q8_0.gguf"]
    assert reports[False].files[0].overall == kept["merged_model-Q8_0.gguf"].overall


def test_a_stop_in_the_middle_goes_on_and_a_replay_makes_what_is_missing(tiny: TinyRun, tmp_path: Path) -> None:
    kept = run_stages(tiny.request(quant_types=TYPES), tmp_path / "kept", until=StageName.QUANTIZE)
    request, scratch = tiny.request(quant_types=TYPES, keep_unquantized=False), tmp_path / "scratch"
    done = run_stages(request, scratch, until=StageName.CONVERT)
    reporter = RecordingReporter()
    reporter.stop = lambda: len(reporter.steps) > 8
    with pytest.raises(StopRequested):
        run_stages(request, scratch, until=StageName.QUANTIZE, done=done, reporter=reporter)
    assert {path.name for path in scratch.glob("*.partial")} == {f"merged_model-{kind}.gguf.partial" for kind in TYPES}
    results = run_stages(request, scratch, until=StageName.QUANTIZE, done=done)
    assert digests(results) == digests(kept)
    assert all(artifact.facts["resumed_tensors"] > 0 for artifact in results[StageName.QUANTIZE].artifacts)
    (scratch / "merged_model-Q8_0.gguf").unlink()
    results = run_stages(request, scratch, until=StageName.QUANTIZE, done=done)
    assert digests(results) == digests(kept)
    assert results[StageName.QUANTIZE].facts["made"] == ["Q8_0"]
    more = tiny.request(quant_types=[*TYPES, "Q6_K"], keep_unquantized=False)
    results = run_stages(more, scratch, until=StageName.QUANTIZE, done=done)
    assert results[StageName.QUANTIZE].facts["made"] == ["Q6_K"]


def test_weights_of_another_base_model_are_never_mixed_in(tiny: TinyRun, tmp_path: Path) -> None:
    """What was made of the weights before is made again of those now; a model of other tensors is refused."""
    fields: dict[str, Any] = {"template": "quantize_base", "checkpoint": None, "quant_types": ["Q8_0"]}
    request, scratch = tiny.request(**fields, keep_unquantized=False), tmp_path / "scratch"
    done = run_stages(request, scratch, until=StageName.CONVERT)
    before = digests(run_stages(request, scratch, until=StageName.QUANTIZE, done=done))
    weights = next(iter(open_base_model(tiny.base).tensors.values())).file
    data = bytearray(weights.read_bytes())
    data[-100] ^= 1
    weights.write_bytes(data)
    after = digests(run_stages(request, scratch, until=StageName.QUANTIZE, done=done))
    assert after != before
    assert after == digests(run_stages(tiny.request(**fields), tmp_path / "kept", until=StageName.QUANTIZE))
    shutil.rmtree(tiny.base)
    tiny_base(tiny.base, num_hidden_layers=1)
    with pytest.raises(PackagingError) as refused:
        run_stages(request, scratch, until=StageName.QUANTIZE, done=done)
    assert refused.value.code is ErrorCode.BASE_MODEL_INVALID
