"""Smaller faults that an operator met: leftovers of killed workers, rights that are missing, answers that come late."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from api_client import ErrorCode, PackagingClient, PackagingError, PackagingRequest
from api_client.ledger.messages import QUEUE_READ, missing_task_ids, queue_keys
from config.settings import load_settings
from tests.integration.harness import Installation
from tests.integration.servers import PERSISTENCE, Server, server, shipped_acl
from worker.local.doctor import check_workers, guarded

pytestmark = pytest.mark.integration


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Server]:
    with server("bundled", tmp_path / "data", acl=shipped_acl(), options=PERSISTENCE["aof"]) as started:
        yield started


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """A directory whose path leaves room for a socket's."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as directory:
        yield Path(directory)


def test_a_killed_worker_s_sockets_are_removed_by_the_next_one(
    service: Installation, short_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sockets = short_directory
    monkeypatch.setenv("TMPDIR", str(sockets))
    for _ in range(2):
        service.start_worker().kill()
    living = service.start_worker()
    assert len([*sockets.glob("tp-*")]) == 1
    assert [*sockets.glob("pymp-*")] == []
    service.assert_settled(service.wait(service.submit()))
    living.stop()
    assert [*sockets.glob("tp-*")] == []


def test_a_prefix_that_the_user_may_not_use_is_named(own: Server, tmp_path: Path) -> None:
    with PackagingClient(own.url(), key_prefix="other") as client:
        for act in (
            client.workers,
            lambda: client.submit(PackagingRequest(base_model="/a", output_dir="/o", template="quantize_base")),
        ):
            with pytest.raises(PackagingError) as caught:
                act()
            assert caught.value.code is ErrorCode.REDIS_DENIED
            assert "'other'" in str(caught.value)
    settings = load_settings({}, redis_url=own.url(), key_prefix="other", home=tmp_path)
    found = guarded("workers", check_workers, settings)
    assert (found.ok, found.remedy) == (False, ErrorCode.REDIS_DENIED.row.remedy_en)


def test_an_answer_that_comes_late_is_waited_for_once_more(own: Server) -> None:
    with PackagingClient(own.url(), timeout_s=1.0) as client:
        assert client.queues()
        assert own.process is not None
        os.kill(own.process.pid, signal.SIGSTOP)
        later = threading.Timer(1.4, os.kill, (own.process.pid, signal.SIGCONT))
        later.start()
        try:
            assert client.queues(), "the server was there all the time, only slow"
        finally:
            later.join()
            os.kill(own.process.pid, signal.SIGCONT)


def test_a_long_queue_is_read_in_pages_and_no_further_than_needed(tmp_path: Path) -> None:
    with server(
        "bundled", tmp_path / "data", acl=None, options=()
    ) as alone:  # of the shared one, workers of other tests read queues as well
        service = Installation(alone.url("default"), tmp_path)
        _read_a_long_queue(service)
        service.close()


def _read_a_long_queue(service: Installation) -> None:
    (first, *_) = queue_keys(service.keys, "packaging.io")

    def message(number: int) -> str:
        return json.dumps({"headers": {"id": f"job:prepare:{number}"}})

    for start in range(0, 3000, 500):
        service.redis.lpush(first, *(message(number) for number in range(start, start + 500)))
    wanted = {f"job:prepare:{number}" for number in (0, 10, 1234, 2999, 3000, 77777)}
    service.redis.lrange(first, 0, 0)
    calls = service.redis.info("commandstats")["cmdstat_lrange"]["calls"]
    assert missing_task_ids(service.redis, service.keys, "packaging.io", wanted) == {
        "job:prepare:3000",
        "job:prepare:77777",
    }
    assert missing_task_ids(service.redis, service.keys, "packaging.io", {"job:prepare:3"}) == set()
    after = service.redis.info("commandstats")["cmdstat_lrange"]["calls"]
    assert after - calls <= 3000 // 500 + 1 + 9 + 1
    for start in range(3000, QUEUE_READ + 1500, 500):
        service.redis.lpush(first, *(message(number) for number in range(start, start + 500)))
    assert missing_task_ids(service.redis, service.keys, "packaging.io", {"nowhere"}) == set(), "not read so far"


def test_a_bucket_that_jobs_may_not_write_ends_the_job_before_anything_runs(service: Installation) -> None:
    service.start_worker(
        stage_registry="worker.stages.registry:STAGES",
        allowed_buckets="mine",
        s3_endpoint_url="http://127.0.0.1:1",
        s3_access_key="a",
        s3_secret_key="b",
        s3_bucket="mine",
    )
    base = service.directory / "base"
    base.mkdir()
    job = service.client.submit(
        PackagingRequest(template="quantize_base", base_model=str(base), output_dir="s3://other/models")
    )
    ended = service.wait(job, 60)
    assert ended.failure is not None
    assert (ended.failure.code, ended.failure.fields["bucket"]) == (ErrorCode.PATH_NOT_ALLOWED, "other")
    assert [stage.attempt for stage in ended.stages] == [1] + [0] * (len(ended.stages) - 1)
