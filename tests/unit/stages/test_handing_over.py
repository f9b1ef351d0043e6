"""What a stage is handed: by its row, the same in service and tests, and nothing is missing without a word."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import Artifact, ArtifactKind, ModelPart, StageName
from api_client.contract.rules import resolve_request
from tests.harness import RecordingReporter, run_stages, stage_settings
from tests.unit.stages.conftest import TinyRun
from worker.stages.context import StageContext, StageResult
from worker.stages.handover import checked_result, handed_over


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


def context_of(tiny: TinyRun, tmp_path: Path, stage: StageName, **fields: object) -> StageContext:
    request, options = resolve_request(tiny.request(**fields))
    results = {StageName.QUANTIZE: StageResult((made(tmp_path, ArtifactKind.QUANTIZED),))}
    return StageContext(
        job_id="J",
        stage=stage,
        attempt=1,
        request=request,
        options=options,
        plan=tuple(StageName),
        done=handed_over(stage, results),
        scratch=tmp_path,
        settings=stage_settings(tmp_path / "home"),
        report=RecordingReporter(),
    )


def made(directory: Path, kind: ArtifactKind, **facts: object) -> Artifact:
    path = directory / kind.value
    path.write_bytes(b"data")
    return Artifact.of(path, kind, facts=facts)


@pytest.mark.parametrize("stage", StageName)
def test_a_kind_that_the_row_does_not_read_is_refused(tiny: TinyRun, tmp_path: Path, stage: StageName) -> None:
    context = context_of(tiny, tmp_path, stage)
    for kind in set(ArtifactKind) - stage.spec.reads:
        with pytest.raises(PackagingError) as refused:
            context.artifacts(kind)
        assert refused.value.code is ErrorCode.INTERNAL_ERROR
        assert refused.value.fields == {"stage": stage.value, "kind": kind.value}


def test_only_what_a_row_reads_is_handed_over(tmp_path: Path) -> None:
    every = {StageName.MERGE: StageResult(tuple(made(tmp_path, kind) for kind in ArtifactKind), {"a": 1}, 2.0)}
    for stage in StageName:
        result = handed_over(stage, every)[StageName.MERGE]
        assert {artifact.kind for artifact in result.artifacts} == stage.spec.reads
        assert (result.facts, result.duration_s) == ({"a": 1}, 2.0)


def test_publish_is_not_handed_a_matrix_that_was_given(tmp_path: Path) -> None:
    for computed in (True, False):
        matrix = made(tmp_path, ArtifactKind.IMATRIX, computed=computed)
        done = {StageName.IMATRIX: StageResult((matrix,))}
        assert bool(handed_over(StageName.PUBLISH, done)[StageName.IMATRIX].artifacts) is computed
        assert handed_over(StageName.QUANTIZE, done)[StageName.IMATRIX].artifacts == (matrix,)


@pytest.mark.parametrize("stage", StageName)
def test_a_kind_that_the_row_does_not_make_is_a_fault_of_the_stage(tmp_path: Path, stage: StageName) -> None:
    for kind in ArtifactKind:
        result = StageResult((made(tmp_path, kind),))
        if kind in stage.spec.makes | stage.spec.may_make:
            assert checked_result(stage, result) is result
            continue
        with pytest.raises(PackagingError) as refused:
            checked_result(stage, result)
        assert refused.value.fields == {"stage": stage.value, "kind": kind.value}


def test_every_kind_that_is_read_is_made_by_a_stage_before() -> None:
    before: set[ArtifactKind] = set()
    for stage in StageName:
        assert stage.spec.reads <= before, stage
        before |= stage.spec.makes | stage.spec.may_make


def test_several_unquantized_files_are_quantized_as_what_they_are(tiny: TinyRun, tmp_path: Path) -> None:
    request = tiny.request(quant_types=["Q8_0"])
    scratch = tmp_path / "scratch"
    done = dict(run_stages(request, scratch, until=StageName.CONVERT))
    (model,) = done[StageName.CONVERT].artifacts
    parts = [model]
    for part in (ModelPart.PROJECTOR, ModelPart.DRAFT):
        path = scratch / f"{part.value}-merged_model.gguf"
        shutil.copyfile(model.path, path)
        parts.append(Artifact.of(path, ArtifactKind.GGUF, part=part, facts=model.facts))
    done[StageName.CONVERT] = replace(done[StageName.CONVERT], artifacts=tuple(reversed(parts)))
    results = run_stages(request, scratch, done=done, settings=stage_settings(tmp_path / "home", verify_load=False))
    assert {path.name for path in tiny.output.glob("*.gguf")} == {
        "merged_model.gguf",
        "draft-merged_model.gguf",
        "merged_model-Q8_0.gguf",
        "draft-merged_model-Q8_0.gguf",
        "projector-merged_model.gguf",
    }
    assert sorted(a.part for a in results[StageName.QUANTIZE].artifacts) == ["draft", "model"]


def test_a_given_matrix_is_handed_on_from_the_job_s_own_directory(tiny: TinyRun, tmp_path: Path) -> None:
    """Where it lies with the user, no record is believed; and who quantizes says the name that the user gave it."""
    computed = run_stages(
        tiny.request(quant_types=["IQ2_M"], imatrix={"chunks": 1}), tmp_path / "computed", until=StageName.IMATRIX
    )
    given = tmp_path / "mine" / "merged_model.gguf"  # the name of one of the job's own files
    given.parent.mkdir()
    shutil.copyfile(computed[StageName.IMATRIX].artifacts[0].path, given)
    request, scratch = tiny.request(quant_types=["IQ2_M"], imatrix=str(given)), tmp_path / "scratch"
    settings = stage_settings(tmp_path / "home", verify_load=False)
    results = run_stages(request, scratch, settings=settings)
    (matrix,) = results[StageName.IMATRIX].artifacts
    assert Path(matrix.path).is_relative_to(scratch)
    assert (matrix.name, matrix.is_whole(given)) == ("merged_model.gguf", True)
    assert {path.name for path in tiny.output.glob("*.gguf")} == {"merged_model.gguf", "merged_model-IQ2_M.gguf"}
