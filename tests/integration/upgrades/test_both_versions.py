"""Two versions at once: an older worker leaves a newer job alone, a newer one runs both, an older client says so."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from api_client import ErrorCode, JobState, PackagingClient, PackagingError
from api_client.contract.job import SCHEMA_VERSION
from api_client.ledger.messages import queue_keys
from tests.integration.harness import Installation, eventually
from tests.integration.upgrades.newer import CHANGES, NEW_FIELDS, make_newer, submit_newer


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_newer(tmp_path_factory.mktemp("newer"), CHANGES)


def starts(service: Installation, output: str) -> list[str]:
    return [line.split()[1] for line in service.runs(output) if line.startswith("start")]


def test_jobs_of_both_versions_end_well_beside_workers_of_both(service: Installation, newer: Path) -> None:
    older = service.start_worker(host_name="older", requeue_after_s=0.5)
    ahead = submit_newer(service, newer, "ahead", signer="me")
    eventually(lambda: older.lines.count('"job_newer"') >= 3, "woken, left alone, woken again")
    job = service.client.get(ahead)
    assert (job.state, job.schema_version, job.newer) == (JobState.QUEUED, SCHEMA_VERSION + 1, True)
    assert [(stage.attempt, stage.attempts) for stage in job.stages] == [(0, ())] * len(job.stages)

    old_jobs = [service.submit(f"old-{number}").id for number in range(3)]
    service.start_worker(source=newer, host_name="newer", requeue_after_s=0.5)
    mixed = [submit_newer(service, newer, "ahead-2", signer="me"), *(service.submit(f"new-{n}").id for n in range(3))]
    for job_id in (ahead, *old_jobs, *mixed):
        assert service.client.wait(job_id, 25).state is JobState.SUCCEEDED
    common = ["prepare", "merge", "convert", "quantize", "verify", "evaluate"]
    assert starts(service, "ahead") == [*common, "sign", "publish"]
    assert starts(service, "old-0") == [*common, "publish"]
    done = service.client.get(ahead)
    assert {a.worker.split("-")[0] for stage in done.stages for a in stage.attempts} == {"newer"}
    assert all(len(stage.attempts) == 1 for stage in done.stages)
    assert "sign" not in {stage.name for stage in done.stages}
    eventually(lambda: not service.redis.exists(*queue_keys(service.keys, "packaging.io")), "no message is left over")


def test_a_newer_worker_alone_runs_older_jobs(service: Installation, newer: Path) -> None:
    job = service.submit()
    service.redis.hdel(service.keys.job(job.id), "schema_version")  # stored before there were versions
    service.start_worker(source=newer)
    service.assert_settled(service.wait(job))


@pytest.mark.short_lease
def test_an_older_worker_s_reaper_passes_on_what_it_does_not_know(service: Installation, newer: Path) -> None:
    worker = service.start_worker(source=newer, host_name="newer")
    job_id = submit_newer(service, newer, "out", signer="me")
    service.client.wait(job_id, 25)
    worker.kill()
    member = f"{job_id}|sign"  # as if it had died in the stage that only it knows
    service.redis.hset(service.keys.job(job_id), mapping={"state": "running"})
    service.redis.hset(service.keys.stages(job_id), mapping={"sign:state": "running", "sign:token": "1-a"})
    service.redis.zadd(service.keys.named("leases"), {member: 1})
    odd = "20261129-120000-aabbcc"
    service.redis.hset(service.keys.job(odd), mapping={"state": "signing", "schema_version": "2"})
    service.redis.hset(service.keys.scratch("older"), odd, str(service.directory / f".trainpack-{odd}"))
    older = service.start_worker(host_name="older")
    eventually(lambda: service.redis.hget(service.keys.stages(job_id), "sign:state") == "queued", "rescued")
    eventually(lambda: "job_newer" in older.lines or "message_resent" in older.lines, "its message is sent")
    assert "reaper_failed" not in older.lines
    assert service.redis.hexists(service.keys.scratch("older"), odd)
    service.assert_settled(service.wait(service.submit("other")), "other")


def test_an_older_client_shows_what_it_can_and_says_the_rest(service: Installation, newer: Path) -> None:
    job_id = submit_newer(service, newer, "out", signer="me")
    command = [sys.executable, "-m", "api_client.cli", "status", job_id]
    environment = service.environment()
    keep = ("TRAINPACK_REDIS_URL", "TRAINPACK_KEY_PREFIX", "TRAINPACK_HOME")
    environment = {k: v for k, v in environment.items() if not k.startswith("TRAINPACK_") or k in keep}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert f"job_newer job {job_id} has schema version 2; this trainpack reads up to 1" in " ".join(done.stdout.split())
    assert [job.id for job in service.client.list()] == [job_id]
    service.redis.hset(service.keys.job(job_id), "state", "signing")
    with PackagingClient(service.url, key_prefix=service.prefix) as client, pytest.raises(PackagingError) as caught:
        client.get(job_id)
    assert caught.value.code is ErrorCode.JOB_NEWER
    assert "Update this client" in caught.value.remedy
    with pytest.raises(PackagingError) as caught:
        next(service.client.events(job_id))
    assert caught.value.code is ErrorCode.JOB_NEWER


def test_a_job_that_only_a_newer_version_reads_hides_no_other(service: Installation) -> None:
    jobs = [service.submit(f"out-{number}").id for number in range(4)]
    service.redis.hset(service.keys.job(jobs[2]), mapping={"state": "signing", "schema_version": SCHEMA_VERSION + 1})
    assert [job.id for job in service.client.list()] == [jobs[3], jobs[1], jobs[0]]
    assert [job.id for job in service.client.list(limit=2)] == [jobs[3], jobs[1]], "the page is full all the same"
    assert [job.id for job in service.client.list(limit=2, cursor=jobs[1])] == [jobs[0]]

    service.redis.zadd(service.keys.state_index("failed"), {jobs[2]: 2, jobs[0]: 1})
    service.redis.hset(service.keys.job(jobs[0]), "state", "failed")
    assert [job.id for job in service.client.replay_failed(datetime.fromtimestamp(0, UTC))] == [jobs[0]]


def test_new_fields_with_defaults_need_no_new_version(service: Installation, tmp_path: Path) -> None:
    newer = make_newer(tmp_path / "newer", NEW_FIELDS)
    templates = tmp_path / "templates.toml"
    table = "title_en='T'\ntitle_zh='T'\ndescription_en='D'\ndescription_zh='D'\nquant_types=['Q5_K_M']\n"
    table += "merge_lora=true\nexport_gguf=true\nquantize=true\nexport_lora=false\n"
    templates.write_text(f"[house]\n{table}[signed]\n{table}sign=true\n")
    service.start_worker(source=newer, host_name="newer", templates_file=templates).stop()

    # an older client takes the template that it understands, and does not trip over the other
    assert "house" in service.client.templates()
    assert "signed" not in service.client.templates()
    job = service.submit("out", template="house", idempotency_key="run-42")

    # a newer producer that repeats an older one's request gets the older one's job
    assert submit_newer(service, newer, "out", template="house", idempotency_key="run-42") == job.id

    # an older worker runs what a newer producer asks for, as long as it does without the new fields
    ahead = submit_newer(service, newer, "ahead")
    assert service.client.get(ahead).options == service.submit("same").options
    assert not service.client.get(ahead).newer
    service.start_worker(host_name="older")
    for job_id in (ahead, job.id):
        assert service.client.wait(job_id, 25).state is JobState.SUCCEEDED
