"""An output directory that others use as well: the user, earlier jobs, a job at the same time."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import StageName
from tests.harness import RecordingReporter, run_stages, stage_settings
from tests.unit.stages.conftest import TinyRun
from worker.stages.context import StageResult
from worker.stop import StopRequested
from worker.storage.checksums import parse_checksums
from worker.storage.locks import DirectoryLock

FIRST, SECOND = "20260101-000000-aaaaaa", "20260101-000000-bbbbbb"
MERGED = "merged_model.gguf"
LORA = "checkpoint-10-lora.gguf"


def refusal(tiny: TinyRun, scratch: Path, *, until: StageName = StageName.PREPARE, **fields: object) -> str:
    """What the job is refused with, which must be ``output_exists``."""
    with pytest.raises(PackagingError) as refused:
        run_stages(tiny.request(template="merge", **fields), scratch, until=until)
    assert refused.value.code is ErrorCode.OUTPUT_EXISTS
    return refused.value.message


def again(tiny: TinyRun, scratch: Path, job_id: str) -> None:
    run_stages(tiny.request(template="merge"), scratch, job_id=job_id)


@pytest.mark.parametrize("content", ["{}", "[1]", '{"name": "my app"}', "no JSON", '{"job_id": "../../elsewhere"}'])
def test_a_manifest_of_the_user_s_stays(tiny: TinyRun, tmp_path: Path, content: str) -> None:
    tiny.output.mkdir()
    manifest = tiny.output / "manifest.json"
    manifest.write_text(content)
    assert str(manifest) in refusal(tiny, tmp_path / "scratch")
    assert manifest.read_text() == content


def test_a_manifest_of_the_user_s_goes_where_overwriting_is_asked_for(tiny: TinyRun, tmp_path: Path) -> None:
    tiny.output.mkdir()
    (tiny.output / "manifest.json").write_text("{}")
    run_stages(tiny.request(template="merge", overwrite=True), tmp_path / "scratch")
    assert json.loads((tiny.output / "manifest.json").read_text())["job_id"] == FIRST


def test_a_directory_in_the_place_of_a_record_is_refused_early(tiny: TinyRun, tmp_path: Path) -> None:
    for name in ("manifest.json", "SHA256SUMS"):
        (tiny.output / name).mkdir(parents=True)
        assert f"{name} exists and is not a file" in refusal(tiny, tmp_path / "scratch", overwrite=True)
        (tiny.output / name).rmdir()


def test_checksums_of_the_user_s_stay_and_hold(tiny: TinyRun, tmp_path: Path) -> None:
    tiny.output.mkdir()
    for name in ("text.txt", "binary.dat", "bsd.dat"):
        (tiny.output / name).write_bytes(b"mine")
    made = subprocess.run(
        "sha256sum text.txt; sha256sum -b binary.dat; sha256sum --tag bsd.dat",
        shell=True,
        capture_output=True,
        cwd=tiny.output,
        check=True,
    ).stdout
    odd = b"# caf\xe9, no UTF-8\n"
    (tiny.output / "SHA256SUMS").write_bytes(odd + made)
    run_stages(tiny.request(template="merge"), tmp_path / "scratch")
    assert (tiny.output / "SHA256SUMS").read_bytes().startswith(odd)
    checked = subprocess.run(
        ["sha256sum", "-c", "SHA256SUMS"], capture_output=True, text=True, cwd=tiny.output, check=True
    )
    assert sorted(checked.stdout.split()) == sorted(
        word for name in ("text.txt", "binary.dat", "bsd.dat", MERGED) for word in (f"{name}:", "OK")
    )


def test_a_job_may_run_again_after_another_has_published_beside_it(tiny: TinyRun, tmp_path: Path) -> None:
    again(tiny, tmp_path / "one", FIRST)
    run_stages(tiny.request(template="lora_only"), tmp_path / "two", job_id=SECOND)
    again(tiny, tmp_path / "replay", FIRST)
    left = {path.name for path in tiny.output.iterdir()}
    assert left == {MERGED, LORA, "manifest.json", f"manifest-{SECOND}.json", "SHA256SUMS"}
    assert set(parse_checksums((tiny.output / "SHA256SUMS").read_text())) == {MERGED, LORA}


def test_reports_of_several_jobs_are_all_kept(tiny: TinyRun, tmp_path: Path) -> None:
    def report(name: str) -> str:
        return str(json.loads((tiny.output / name).read_text())["files"][0]["name"])

    def run(name: str, job_id: str, scratch: str) -> None:
        request = tiny.request(template="merge", model_name=name, evaluation="quick")
        run_stages(request, tmp_path / scratch, job_id=job_id, settings=settings)

    settings = stage_settings(tmp_path / "home", verify_load=False)
    run("one", FIRST, "one")
    run("two", SECOND, "two")
    assert (report("quality.json"), report(f"quality-{FIRST}.json")) == ("two.gguf", "one.gguf")
    run("one", FIRST, "again")
    assert (report("quality.json"), report(f"quality-{SECOND}.json")) == ("one.gguf", "two.gguf")
    assert not (tiny.output / f"quality-{FIRST}.json").exists()
    (tiny.output / "quality.json").write_text("the user's own")
    with pytest.raises(PackagingError) as refused:
        run("three", "20260101-000000-cccccc", "three")
    assert refused.value.code is ErrorCode.OUTPUT_EXISTS


def test_a_file_that_another_job_has_replaced_is_not_the_first_one_s_any_more(tiny: TinyRun, tmp_path: Path) -> None:
    again(tiny, tmp_path / "one", FIRST)
    other = tiny.request(template="merge", overwrite=True, gguf_dtype="f32")
    run_stages(other, tmp_path / "two", job_id=SECOND)
    theirs = (tiny.output / MERGED).read_bytes()
    assert MERGED in refusal(tiny, tmp_path / "replay")
    assert (tiny.output / MERGED).read_bytes() == theirs


def test_what_an_attempt_placed_before_it_died_is_the_job_s_own(tiny: TinyRun, tmp_path: Path) -> None:
    done = run_stages(tiny.request(template="merge"), tmp_path / "scratch", until=StageName.VERIFY)
    tiny.output.mkdir()
    (tiny.output / MERGED).hardlink_to(tmp_path / "scratch" / MERGED)
    run_stages(tiny.request(template="merge"), tmp_path / "scratch", until=StageName.PREPARE)
    assert MERGED in refusal(tiny, tmp_path / "of another job")
    run_stages(tiny.request(template="merge"), tmp_path / "scratch", done=done)
    assert (tiny.output / "manifest.json").is_file()


def verified(tiny: TinyRun, scratch: Path) -> dict[StageName, StageResult]:
    return run_stages(tiny.request(), scratch, until=StageName.VERIFY)


def test_where_one_file_is_in_the_way_none_is_published(tiny: TinyRun, tmp_path: Path) -> None:
    done = verified(tiny, tmp_path / "scratch")
    tiny.output.mkdir()
    last = tiny.output / "merged_model-Q4_K_M.gguf"
    last.write_text("of a job that was faster")
    with pytest.raises(PackagingError) as refused:
        run_stages(tiny.request(), tmp_path / "scratch", done=done)
    assert refused.value.code is ErrorCode.OUTPUT_EXISTS
    assert [path.name for path in tiny.output.iterdir()] == [last.name]
    assert last.read_text() == "of a job that was faster"


def test_jobs_publish_into_one_directory_one_after_the_other(tiny: TinyRun, tmp_path: Path) -> None:
    done = verified(tiny, tmp_path / "scratch")
    tiny.output.mkdir()
    asked = []

    def stop() -> bool:
        """The first question comes before the lock, the second while it waits."""
        asked.append(True)
        return len(asked) > 1

    reporter = RecordingReporter(stop=stop)
    with DirectoryLock(tiny.output), pytest.raises(StopRequested):
        run_stages(tiny.request(), tmp_path / "scratch", done=done, reporter=reporter)
    assert reporter.lines[-1][1].startswith("Waiting for another job")
    assert list(tiny.output.iterdir()) == []
    run_stages(tiny.request(), tmp_path / "scratch", done=done)
    assert (tiny.output / "manifest.json").is_file()
