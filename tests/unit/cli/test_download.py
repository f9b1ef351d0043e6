"""Fetching outputs that are near: copied, checked, never half-written."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from api_client.cli.download import fetch_all
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import Artifact, ArtifactKind, Job, StageName
from tests.unit.cli.cli_samples import make_job, make_output


@pytest.fixture
def job(tmp_path: Path) -> Job:
    (tmp_path / "out").mkdir()
    artifacts = []
    for name, content in (("a.gguf", b"a" * 5_000_000), ("SHA256SUMS", b"sums")):
        path = tmp_path / "out" / name
        path.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        artifacts.append(
            Artifact(name=name, path=str(path), kind=ArtifactKind.GGUF, size_bytes=len(content), sha256=digest)
        )
    done = make_job(None)
    stages = [
        one.model_copy(update={"artifacts": tuple(artifacts)}) if one.name is StageName.PUBLISH else one
        for one in done.stages
    ]
    return done.model_copy(update={"stages": tuple(stages)})


def fetch(job: Job, directory: Path, **more: Any) -> Any:
    return fetch_all(job, directory, make_output(), **{"overwrite": False, **more})


def test_files_near_by_are_copied_checked_and_kept_the_second_time(job: Job, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "copy"
    fetched = fetch(job, target)
    assert [(one.name, one.how) for one in fetched] == [("a.gguf", "copied"), ("SHA256SUMS", "copied")]
    assert (target / "a.gguf").read_bytes() == b"a" * 5_000_000
    assert [one.how for one in fetch(job, target)] == ["kept", "kept"]
    assert {path.name for path in target.iterdir()} == {"a.gguf", "SHA256SUMS"}


def refused(job: Job, directory: Path, **more: Any) -> PackagingError:
    with pytest.raises(PackagingError) as caught:
        fetch(job, directory, **more)
    return caught.value


def test_a_file_that_changed_is_refused_and_leaves_nothing(job: Job, tmp_path: Path) -> None:
    (tmp_path / "out" / "a.gguf").write_bytes(b"b" * 5_000_000)
    error = refused(job, tmp_path / "copy")
    assert error.code is ErrorCode.DOWNLOAD_FAILED
    assert "arrived changed" in error.message
    assert list((tmp_path / "copy").iterdir()) == []


def test_another_file_of_the_name_is_replaced_only_on_request(job: Job, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "a.gguf").write_text("mine")
    assert refused(job, tmp_path / "copy").code is ErrorCode.OUTPUT_EXISTS
    assert (tmp_path / "copy" / "a.gguf").read_text() == "mine"
    fetch(job, tmp_path / "copy", overwrite=True)
    assert (tmp_path / "copy" / "a.gguf").stat().st_size == 5_000_000


def test_a_file_that_is_nowhere_says_so(job: Job, tmp_path: Path) -> None:
    (tmp_path / "out" / "SHA256SUMS").unlink()
    error = refused(job, tmp_path / "copy")
    assert error.code is ErrorCode.DOWNLOAD_FAILED
    assert "was not uploaded" in error.message


def test_a_job_without_outputs_and_a_directory_that_cannot_be_are_refused(job: Job, tmp_path: Path) -> None:
    assert refused(make_job(), tmp_path).code is ErrorCode.REQUEST_INVALID
    (tmp_path / "file").write_text("")
    assert refused(job, tmp_path / "file" / "copy").code is ErrorCode.OUTPUT_DIR_NOT_WRITABLE


def test_an_artifact_s_name_cannot_lead_out_of_the_directory(job: Job, tmp_path: Path) -> None:
    publish = job.stages[-1]
    evil = publish.artifacts[0].model_copy(update={"name": "../../evil.gguf"})
    stages = (*job.stages[:-1], publish.model_copy(update={"artifacts": (evil,)}))
    fetch(job.model_copy(update={"stages": stages}), tmp_path / "x" / "copy")
    assert [path.name for path in (tmp_path / "x" / "copy").iterdir()] == ["evil.gguf"]
