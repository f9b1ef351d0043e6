"""What a worker believes of a record: hostile paths, names and facts, and seals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from api_client import Artifact, ArtifactKind, ErrorCode, PackagingError, PackagingRequest, StageName
from api_client.contract.job import is_plain_name
from api_client.contract.job_ids import is_job_id
from api_client.contract.rules import resolve_request
from api_client.ledger.records import JobRecord
from config.roots import Roots
from config.settings import Settings, load_settings
from worker.service.state.seal import Seal
from worker.service.state.transitions import Lease
from worker.service.supervisor.stored import Stored, read_stored
from worker.service.supervisor.vetting import disbelieved, may_write, noted_scratch, prepared_here, usable_paths

JOB = "20261129-120000-abcdef"
LEASE = Lease(JOB, StageName.PUBLISH, 1, "1-token")
DIGEST = "0" * 64


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "allowed").mkdir()
    return load_settings({}, home=tmp_path / "home", allowed_roots=Roots.only(tmp_path / "allowed"))


def request_of(output_dir: Path) -> PackagingRequest:
    return PackagingRequest(template="quantize_base", base_model="/models/base", output_dir=str(output_dir))


@pytest.mark.parametrize("bad", ["", "J", "../../etc", f"{JOB}/..", f"{JOB}\n", "20261129-120000-ABCDEF", "a" * 10_000])
def test_ids_of_no_job(bad: str) -> None:
    assert not is_job_id(bad)
    assert is_job_id(JOB)


@pytest.mark.parametrize("bad", ["", ".", "..", "../x", "a/../b", "/etc/passwd", "a/b/c", "a//b", "a\0b", "n" * 256])
def test_names_that_are_no_file_s(bad: str) -> None:
    assert not is_plain_name(bad)
    with pytest.raises(ValidationError, match=r"plain file name|at most"):
        Artifact(name=bad, path="/x", kind=ArtifactKind.GGUF, size_bytes=1, sha256=DIGEST)


@pytest.mark.parametrize(
    ("field", "value"), [("sha256", ""), ("sha256", "xyz"), ("size_bytes", -1), ("path", "p" * 5000)]
)
def test_an_artifact_has_a_digest_a_size_and_a_short_path(field: str, value: Any) -> None:
    good = {"name": "a.gguf", "path": "/x", "kind": "gguf", "size_bytes": 1, "sha256": DIGEST}
    assert Artifact.model_validate(good).name == "a.gguf"
    assert Artifact.model_validate(good | {"name": "tuned-hf/config.json"})
    with pytest.raises(ValidationError):
        Artifact.model_validate(good | {field: value})


def test_scratch_is_only_where_a_job_s_can_be(settings: Settings, tmp_path: Path) -> None:
    allowed, home = tmp_path / "allowed", tmp_path / "home"
    good = [allowed / "out" / f".trainpack-{JOB}", home / "scratch" / JOB]
    assert [noted_scratch(settings, JOB, str(path)) for path in good] == good
    other = settings.model_copy(update={"scratch_dir": tmp_path / "scratch"})
    assert noted_scratch(other, JOB, str(tmp_path / "scratch" / JOB)) is not None
    bad = [
        tmp_path / "victim", allowed, allowed / "out", allowed / ".trainpack-20261129-120000-000000", home,
        home / "scratch",
        tmp_path / f".trainpack-{JOB}", tmp_path / "scratch" / JOB, f"{allowed}/../victim/.trainpack-{JOB}",
        f".trainpack-{JOB}",
        "", "\0", "/" * 5000, home / "scratch" / ".." / "scratch" / JOB,
    ]  # fmt: skip
    assert [path for path in bad if noted_scratch(settings, JOB, str(path)) is not None] == []
    assert noted_scratch(settings, "..", str(home / "scratch" / "..")) is None
    (tmp_path / "victim").mkdir()
    link = allowed / f".trainpack-{JOB}"
    link.symlink_to(tmp_path / "victim")
    assert noted_scratch(settings, JOB, str(link)) is None
    (allowed / "way").symlink_to(tmp_path / "victim")
    assert noted_scratch(settings, JOB, str(allowed / "way" / f".trainpack-{JOB}")) is None


def test_files_are_used_only_from_scratch_and_output(settings: Settings, tmp_path: Path) -> None:
    out, scratch = tmp_path / "allowed/out", tmp_path / "home/scratch" / JOB
    for directory in (out, scratch):
        directory.mkdir(parents=True)
    (out / "link").symlink_to(tmp_path / "secret")
    usable = usable_paths(JOB, request_of(out), scratch, settings)
    assert usable(str(out / "a.gguf"))
    assert usable(str(scratch / "overlay"))
    for bad in (
        tmp_path / "secret",
        out / "link",
        out / ".." / "x",
        "/etc/passwd",
        "relative",
        "\0",
        tmp_path / "allowed",
    ):
        assert not usable(str(bad)), bad
    (tmp_path / "allowed" / f".trainpack-{JOB}").symlink_to(tmp_path / "secret")
    assert not usable(str(tmp_path / "allowed" / f".trainpack-{JOB}" / "a.gguf"))
    assert usable(str(tmp_path / "allowed/other" / f".trainpack-{JOB}" / "a.gguf")), "as another host has it"
    assert not usable(str(tmp_path / "elsewhere" / f".trainpack-{JOB}" / "a.gguf"))
    outside = request_of(tmp_path / "elsewhere")
    assert not may_write(outside, settings)
    assert not usable_paths(JOB, outside, scratch, settings)(str(tmp_path / "elsewhere/a.gguf"))


@pytest.mark.parametrize(
    "facts",
    [
        {"base_dir": "/etc"},
        {"base_dir": 7},
        {"tokenizer_dir": "{allowed}/../secret"},
        {"checkpoint_dir": "relative"},
        {"adapter_dir": "{allowed}/link"},
        {"base_name": "../../x"},
        {"base_name": "a/b"},
        {"checkpoint_name": ["x"]},
        {"imatrix": {"path": "/etc/passwd"}},
        {"imatrix": "/etc/passwd"},
    ],
)
def test_what_prepare_cannot_have_found(facts: dict[str, Any], settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "allowed/link").symlink_to("/etc")
    told = json.loads(json.dumps(facts).replace("{allowed}", str(tmp_path / "allowed")))
    fine = {
        "base_dir": f"{tmp_path}/allowed/m",
        "tokenizer_dir": f"{tmp_path}/home/cache/x",
        "base_name": "m",
        "imatrix": {},
    }
    assert prepared_here(fine, settings)
    assert prepared_here(fine | {"adapter_dir": None, "adapter_base": "/where/it/was/trained"}, settings)
    assert not prepared_here(fine | told, settings)


def stored_job(output_dir: Path, **stages: str) -> JobRecord:
    request, options = resolve_request(request_of(output_dir))
    job = {
        "id": JOB,
        "state": "running",
        "schema_version": "1",
        "request": request.model_dump_json(),
        "options": options.model_dump_json(),
        "plan": json.dumps(["prepare", "convert", "quantize", "verify", "publish"]),
        "created_at": "1790000000000",
    }
    return JobRecord(job, dict(stages), ())


def sealed(record: JobRecord, seal: Seal, stage: StageName, artifacts: str, facts: str) -> JobRecord:
    made = seal.make(JOB, stage, record.job, artifacts=artifacts, facts=facts)
    fields = {"state": "succeeded", "artifacts": artifacts, "facts": facts, "seal": made}
    stages = {f"{stage.value}:{name}": text for name, text in fields.items()}
    return JobRecord(record.job, {**record.stages, **stages}, ())


KEY = Seal(SecretStr("a-key-of-the-workers"))


def read(record: JobRecord, seal: Seal = KEY) -> Stored:
    return read_stored(LEASE, record, seal)


def test_what_a_worker_sealed_is_believed_and_nothing_else(tmp_path: Path) -> None:
    one = json.dumps([{"name": "a.gguf", "path": "/x", "kind": "gguf", "size_bytes": 1, "sha256": DIGEST}])
    whole = sealed(stored_job(tmp_path), KEY, StageName.CONVERT, one, "{}")
    assert read(whole).unsealed == ()
    assert [a.name for a in read(whole).job.stage(StageName.CONVERT).artifacts] == ["a.gguf"]
    changed = [
        {**whole.stages, "convert:artifacts": one.replace("/x", "/y")},
        {**whole.stages, "convert:facts": '{"a": 1}'},
        {**whole.stages, "convert:seal": ""},
        {**whole.stages, "convert:seal": "é" * 64},
        {field: value for field, value in whole.stages.items() if field != "convert:seal"},
    ]
    for stages in changed:
        found = read(JobRecord(whole.job, stages, ()))
        assert found.unsealed == (StageName.CONVERT,)
        assert found.job.stage(StageName.CONVERT).artifacts == ()
        assert found.job.stage(StageName.CONVERT).facts == {}
    moved = {field.replace("convert", "quantize"): value for field, value in whole.stages.items()}
    assert read(JobRecord(whole.job, moved, ())).unsealed == (StageName.QUANTIZE,)
    other = request_of(tmp_path / "b").model_dump_json()
    other_request = JobRecord({**whole.job, "request": other}, whole.stages, ())
    assert read(other_request).unsealed == (StageName.CONVERT,)
    assert read(whole, Seal(SecretStr("another-key-altogether"))).unsealed == (StageName.CONVERT,)
    assert read(JobRecord(whole.job, changed[2], ()), Seal(None)).unsealed == ()


def test_what_was_made_before_a_replay_counts_only_under_its_seal(tmp_path: Path) -> None:
    one = json.dumps([{"name": "a.gguf", "path": "/x", "kind": "gguf", "size_bytes": 1, "sha256": DIGEST}])
    record = stored_job(tmp_path)
    made = KEY.make(JOB, StageName.PUBLISH, record.job, artifacts=one, facts="{}")
    before = {"publish:previous": one, "publish:previous_facts": "{}", "publish:previous_seal": made}
    assert len(read(JobRecord(record.job, before, ())).previous.artifacts) == 1
    assert read(JobRecord(record.job, before | {"publish:previous_seal": ""}, ())).previous.artifacts == ()
    assert read(record).previous.artifacts == ()


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("job", "plan", "{"),
        ("job", "plan", '["no such stage"]'),
        ("job", "created_at", "soon"),
        ("job", "created_at", "9" * 30),
        ("job", "state", "odd"),
        ("job", "rewinds", "many"),
        ("job", "options", '{"quant_types": 7}'),
        ("stages", "publish:retries", "x"),
        ("stages", "convert:artifacts", '[{"name": "../../x"}]'),
        ("stages", "convert:facts", "[1]"),
        ("stages", "convert:progress", "7"),
        ("stages", "convert:started_at", "1e999"),
        ("stages", "publish:previous", '{"a": 1}'),
    ],
)
def test_a_record_that_nobody_wrote_is_said_to_be_one(part: str, field: str, value: str, tmp_path: Path) -> None:
    record = stored_job(tmp_path)
    hashes = {"job": record.job, "stages": record.stages}
    hashes[part] = {**hashes[part], field: value}
    with pytest.raises(PackagingError) as caught:
        read(JobRecord(hashes["job"], hashes["stages"], ()), Seal(None))
    assert caught.value.code is ErrorCode.RECORD_INVALID
    assert len(caught.value.message) < 500


def test_prepare_is_done_again_where_its_facts_lead_outside(settings: Settings, tmp_path: Path) -> None:
    facts = {
        "prepare:state": "succeeded",
        "prepare:facts": '{"base_dir": "/etc", "tokenizer_dir": "/etc", "base_name": "m"}',
    }
    job = read(stored_job(tmp_path / "allowed/out", **facts), Seal(None)).job
    assert disbelieved(job, settings) == (StageName.PREPARE,)
    assert disbelieved(job, settings.model_copy(update={"allowed_roots": Roots.anywhere()})) == ()
