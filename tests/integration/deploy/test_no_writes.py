"""A Redis that answers and takes no writes is called that everywhere, with what to do, and costs no job anything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from api_client import ErrorCode, PackagingError
from api_client.console.metrics import metrics_text
from config.settings import load_settings
from tests.integration.console.running import running_console
from tests.integration.harness import Installation, eventually
from tests.integration.servers import PERSISTENCE, Server, server
from worker.local.doctor import check_redis

pytestmark = pytest.mark.integration

REFUSALS = {
    "full": (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
    "replica": (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
    "replicas": (("CONFIG", "SET", "min-replicas-to-write", "1"), ("CONFIG", "SET", "min-replicas-to-write", "0")),
}


@pytest.fixture(scope="module", params=["bundled", "redis-server"])
def started(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(request.param, tmp_path_factory.mktemp("writes"), acl=None, options=PERSISTENCE["aof"]) as found:
        yield found


@pytest.mark.parametrize("reason", REFUSALS)
def test_it_is_said_by_all_and_passes(reason: str, started: Server, tmp_path: Path) -> None:
    url = f"redis://127.0.0.1:{started.port}/0"
    refuse, allow = REFUSALS[reason]
    service = Installation(url, tmp_path)
    server_side: Any = Redis.from_url(url)
    try:
        worker = service.start_worker()
        job = service.submit("held", labels={"merge": "hold"})
        service.held("merge", output="held")
        server_side.execute_command(*refuse)

        checked = check_redis(load_settings({}, redis_url=url, home=tmp_path))
        assert (checked.ok, checked.remedy) == (False, ErrorCode.REDIS_NO_WRITES.row.remedy_en)
        with pytest.raises(PackagingError) as caught:
            service.submit("refused")
        assert caught.value.code is ErrorCode.REDIS_NO_WRITES
        assert caught.value.failure.fields["refusal"] == reason
        series = metrics_text(service.client).decode()
        assert "\ntrainpack_redis_up 0.0\n" in series
        assert f'\ntrainpack_redis_refuses_writes{{reason="{reason}"}} 1.0\n' in series
        with running_console(url, service.prefix) as console, console.client() as http:
            answer = http.get("/health")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "redis_no_writes")
            assert http.get(f"/api/v1/jobs/{job.id}").json()["state"] == "running", "reading still works"
        eventually(lambda: "redis_no_writes" in worker.lines, "the worker says so")
        said = [json.loads(line)["event"] for line in worker.lines.splitlines() if line.startswith("{")]
        assert said.count("redis_no_writes") == 1
        assert len(worker.lines) < 100_000

        server_side.execute_command(*allow)
        service.let_go("merge", "held")
        service.assert_settled(service.wait(job, 40), "held")
        assert "\ntrainpack_redis_up 1.0\n" in metrics_text(service.client).decode()
    finally:
        server_side.execute_command(*allow)
        server_side.close()
        service.close()
