"""Submitting, listing, following and expiring, against a real server."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from api_client import JobState, PackagingClient, PackagingError, StageName
from api_client.ledger.scripts import Script
from tests.integration.harness import BOUND_S, Installation, eventually


def code_of(error: pytest.ExceptionInfo[PackagingError]) -> str:
    return error.value.code.value


def test_one_key_makes_one_job_even_when_producers_race(service: Installation) -> None:
    request = service.request(idempotency_key="run-42")

    def submit(_: int) -> str:
        with PackagingClient(service.url, key_prefix=service.prefix) as client:
            return client.submit(request).id

    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(submit, range(16)))
    assert len(ids) == 1
    assert [job.id for job in service.client.list()] == [*ids]
    other = service.request(idempotency_key="run-42", quant_types=["Q8_0"])
    with pytest.raises(PackagingError) as caught:
        service.client.submit(other)
    assert code_of(caught) == "idempotency_conflict"
    assert caught.value.fields["job_id"] in ids


def test_without_a_key_every_submit_is_a_job(service: Installation) -> None:
    assert service.submit().id != service.submit().id


@pytest.mark.parametrize("key", ["", "run-42"])
def test_a_submit_whose_answer_was_lost_may_be_sent_again(service: Installation, key: str) -> None:
    submit = Script(service.redis, service.prefix, "api_client.ledger.lua", "submit")
    arguments = {
        "id": "20260101-000000-aaaaaa",
        "nonce": "n",
        "digest": "d",
        "idempotency_key": key,
        "schema_version": "1",
        "request": "{}",
        "options": "{}",
        "plan": '["prepare", "publish"]',
        "labels": "{}",
        "priority": "5",
        "template": "merge",
    }
    first = submit(**arguments)
    assert first == ["created", ["20260101-000000-aaaaaa", "prepare", "1", "packaging.io", "5", "1"]]
    assert submit(**arguments) == first
    assert submit(**(arguments | {"nonce": "other", "digest": "e"})) == (
        ["conflict", "20260101-000000-aaaaaa"] if key else ["taken"]
    )
    assert service.redis.zcard(service.keys.named("jobs")) == 1
    assert service.redis.xlen(service.keys.events("20260101-000000-aaaaaa")) == 1


def test_a_bad_request_stores_nothing(service: Installation) -> None:
    with pytest.raises(PackagingError) as caught:
        service.submit(checkpoint=None)
    assert code_of(caught) == "checkpoint_required"
    assert service.redis.keys(f"{service.prefix}:*") == []


def test_lists_by_state_labels_time_and_page(service: Installation) -> None:
    jobs = [service.submit(f"o{n}", labels={"run": str(n % 2), "all": "yes"}, template="merge") for n in range(6)]
    service.client.cancel(jobs[0].id)
    newest_first = [job.id for job in reversed(jobs)]

    def ids(**filters: Any) -> list[str]:
        return [job.id for job in service.client.list(**filters)]

    assert ids() == newest_first
    assert ids(state="queued") == newest_first[:5]
    assert ids(state=JobState.CANCELLED) == newest_first[5:]
    assert ids(labels={"run": "1"}) == newest_first[::2]
    assert ids(labels={"run": "0", "all": "yes"}, state="queued") == newest_first[1:5:2]
    assert ids(labels={"run": "7"}) == []
    assert ids(since=jobs[3].created_at) == newest_first[:3]
    assert ids(since=datetime.now(UTC) + timedelta(hours=1)) == []
    pages, cursor = [], None
    while page := service.client.list(limit=4, cursor=cursor):
        pages.append([job.id for job in page])
        cursor = page[-1].id
    assert pages == [newest_first[:4], newest_first[4:]]
    with pytest.raises(PackagingError) as caught:
        ids(state="done")
    assert "queued, running, succeeded, failed, cancelled" in caught.value.message
    with pytest.raises(PackagingError) as caught:
        ids(cursor="nonsense")
    assert code_of(caught) == "request_invalid"


def test_pages_of_jobs_of_the_same_millisecond(service: Installation) -> None:
    jobs = [service.submit(f"o{n}") for n in range(5)]
    for job in jobs:
        service.redis.zadd(service.keys.named("jobs"), {job.id: 1_700_000_000_000})
    seen, cursor = [], None
    while page := service.client.list(limit=2, cursor=cursor):
        seen += [job.id for job in page]
        cursor = page[-1].id
    assert sorted(seen) == sorted(job.id for job in jobs)
    assert len(seen) == 5


def test_a_job_reads_back_as_it_was_sent(service: Installation) -> None:
    before = datetime.now(UTC)
    job = service.submit(
        labels={"名称": "微调"}, quant_types=["Q8_0", "Q4_K_M"], priority=9, model_name="小模型", idempotency_key="k"
    )
    found = service.client.get(job.id)
    assert found.request == service.request(
        labels={"名称": "微调"}, quant_types=["Q8_0", "Q4_K_M"], priority=9, model_name="小模型", idempotency_key="k"
    )
    assert [quant.value for quant in found.options.quant_types] == ["Q8_0", "Q4_K_M"]
    plan = ("prepare", "merge", "convert", "quantize", "verify", "evaluate", "publish")
    assert found.plan == tuple(StageName(stage) for stage in plan)
    assert before - timedelta(seconds=1) < found.created_at <= datetime.now(UTC)


def test_waiting_has_a_bound_and_following_ends_with_the_job(service: Installation) -> None:
    job = service.submit()
    with pytest.raises(PackagingError) as caught:
        service.client.wait(job.id, 0.3)
    assert code_of(caught) == "wait_timeout"
    for name in ("timeout_s", "timeout"):  # the second is the name of before
        with pytest.raises(PackagingError) as caught:
            service.client.wait(job.id, **{name: 0.1})
        assert caught.value.fields["timeout_s"] == 0.1
    with pytest.raises(TypeError, match="are the same"):
        service.client.wait(job.id, timeout_s=1, timeout=1)
    assert [e.message for e in service.client.events(job.id, follow=True, timeout_s=0.3)] == ["Job submitted"]
    followed: list[str] = []
    follower = threading.Thread(
        target=lambda: followed.extend(e.message for e in service.client.events(job.id, follow=True))
    )
    follower.start()
    service.start_worker()
    service.wait(job)
    follower.join(BOUND_S)
    assert not follower.is_alive()
    assert (followed[0], followed[-1]) == ("Job submitted", "Job succeeded")
    _first, second, *rest = service.client.events(job.id)
    assert [e.id for e in service.client.events(job.id, after=second.id)] == [e.id for e in rest]
    with pytest.raises(PackagingError) as caught:
        list(service.client.events("20200101-000000-nobody", follow=True))
    assert code_of(caught) == "job_not_found"
    for no_id in ("", "newest", "1-", "-1", "1-2-3", str(10**20)):
        with pytest.raises(PackagingError) as caught:
            service.client.events(job.id, after=no_id)
        assert code_of(caught) == "request_invalid"


def test_an_expired_job_leaves_no_key(service: Installation) -> None:
    service.start_worker(job_ttl_s=5.0, failed_scratch_ttl_s=600)
    job = service.wait(service.submit("good", labels={"run": "1"}, idempotency_key="k"))
    bad = service.wait(service.submit("bad", labels={"run": "2", "convert": "permanent"}))
    assert service.path(f".trainpack-{bad.id}", "bad").is_dir()
    eventually(lambda: not service.redis.exists(service.keys.job(bad.id)), "expired")
    eventually(lambda: not service.path(f".trainpack-{bad.id}", "bad").exists(), "scratch gone with its job")
    assert service.client.list() == []
    fixed = {"clock", "config", "hosts", "workers", "reaper", "jobs:templates"}

    def left() -> list[str]:
        found = service.redis.scan_iter(f"{service.prefix}:*", count=1000)
        names = [key.removeprefix(f"{service.prefix}:") for key in found if ":broker:" not in key]
        return [name for name in names if name not in fixed and not name.startswith("worker:")]

    eventually(lambda: not left(), "no key is left")
    for key in service.redis.scan_iter(f"{service.prefix}:broker:*"):
        assert job.id not in key


def test_the_scratch_of_a_failed_job_goes_after_its_time(service: Installation) -> None:
    service.start_worker(failed_scratch_ttl_s=3600)
    job = service.wait(service.submit(labels={"convert": "permanent"}))
    scratch = service.path(f".trainpack-{job.id}")
    assert (scratch / "overlay.safetensors").exists()
    service.redis.hincrby(service.keys.job(job.id), "finished_at", -4_000_000)  # what more than an hour would do
    eventually(lambda: not scratch.exists(), "scratch gone")
    assert service.client.get(job.id).state is JobState.FAILED


def test_bad_input_leaves_nothing_behind(running: Installation) -> None:
    job = running.submit("new/deep/out", labels={"prepare": "permanent"})
    running.wait(job)
    eventually(lambda: not running.path(f".trainpack-{job.id}", "new/deep/out").exists(), "scratch gone")


def test_a_place_outside_the_allowed_roots_is_not_touched(service: Installation) -> None:
    allowed = service.directory / "allowed"
    allowed.mkdir()
    (allowed / "link").symlink_to(service.directory)
    service.start_worker(allowed_roots=allowed)
    for name in ("elsewhere", "allowed/link/elsewhere"):
        job = service.wait(service.submit(name))
        assert job.error is not None
        assert job.error["code"] == "path_not_allowed"
    assert not service.path("", "elsewhere").exists()
    service.assert_settled(service.wait(service.submit("allowed/out")), "allowed/out")


def test_site_templates_reach_clients(service: Installation) -> None:
    file = service.directory / "templates.toml"
    file.write_text(
        '[edge]\ntitle_en = "Edge"\ntitle_zh = "边缘"\ndescription_en = "Small types"\ndescription_zh = "小体积"\n'
        'merge_lora = true\nexport_gguf = true\nquantize = true\nexport_lora = false\nquant_types = ["Q4_0", "Q8_0"]\n'
    )
    with pytest.raises(PackagingError) as caught:
        service.submit(template="edge")
    assert code_of(caught) == "unknown_template"
    service.start_worker(templates_file=file)
    assert service.client.templates()["edge"].title_zh == "边缘"
    job = service.submit(template="edge")
    assert [quant.value for quant in job.options.quant_types] == ["Q4_0", "Q8_0"]
    service.assert_settled(service.wait(job))
