"""The event stream: resumed, left, limited, ended with the console."""

from __future__ import annotations

import threading
from contextlib import ExitStack, closing
from pathlib import Path

import httpx
import pytest

from api_client.console.api import events
from api_client.contract.errors import ErrorCode
from api_client.contract.job import Job
from tests.integration.console.running import RunningConsole, messages, running_console
from tests.integration.faults.conftest import OwnServer
from tests.integration.harness import Installation, eventually

pytestmark = pytest.mark.integration


def path(job: Job) -> str:
    return f"/api/v1/jobs/{job.id}/events/stream"


def held_job(running: Installation) -> Job:
    job = running.submit(labels={"convert": "hold"})
    running.held("convert")
    return job


def open_streams(console: RunningConsole) -> int:
    return int(console.app.state.streams.open)


def test_a_stream_goes_on_where_the_last_one_ended(http: httpx.Client, running: Installation) -> None:
    job = held_job(running)
    whole = [event.id for event in running.client.events(job.id)]
    with http.stream("GET", path(job)) as answer:
        first = [message.id for message, _ in zip(messages(answer), range(3), strict=False)]
    assert first == whole[:3]
    running.let_go("convert")
    resumed: list[str] = []
    for options in ({"headers": {"Last-Event-ID": first[-1]}}, {"params": {"after": first[-1]}}):
        with http.stream("GET", path(job), **options) as answer:  # type: ignore[arg-type]
            *seen, end = messages(answer)
        assert end.event == "end"
        resumed = [message.id for message in seen]
        assert first + resumed == [event.id for event in running.client.events(job.id)]
    with http.stream("GET", path(job), headers={"Last-Event-ID": resumed[-1]}) as answer:
        assert [message.event for message in messages(answer)] == ["end"]


@pytest.mark.parametrize("after", ["$", "x", "1-x", "-1", "99999999999999999999999"])
def test_an_id_that_is_none_is_refused(http: httpx.Client, running: Installation, after: str) -> None:
    job = running.submit()
    for answer in (
        http.get(path(job), params={"after": after}),
        http.get(path(job), headers={"Last-Event-ID": after}),
        http.get(f"/api/v1/jobs/{job.id}/events", params={"after": after}),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "request_invalid")


def test_events_come_in_pages_without_a_gap(http: httpx.Client, running: Installation) -> None:
    job = running.wait(running.submit())
    seen: list[str] = []
    after = "0"
    while True:
        page = http.get(f"/api/v1/jobs/{job.id}/events", params={"after": after, "limit": 3}).json()
        assert page["state"] == "succeeded"
        if not page["events"]:
            break
        seen += [event["id"] for event in page["events"]]
        after = page["next_after"]
    assert page["next_after"] == after
    assert seen == [event.id for event in running.client.events(job.id)]


def test_the_mark_of_a_cut_log_costs_no_entry(http: httpx.Client, running: Installation) -> None:
    job = running.wait(running.submit())
    running.redis.xtrim(running.keys.events(job.id), maxlen=5, approximate=False)
    mark, *kept = [event.id for event in running.client.events(job.id)]
    assert mark == kept[0]
    with http.stream("GET", path(job)) as answer:
        first, *entries, _ = messages(answer)
    assert (first.id, first.data["kind"]) == ("", "Truncated")
    assert [entry.id for entry in entries] == kept
    page = http.get(f"/api/v1/jobs/{job.id}/events", params={"limit": 1}).json()
    assert page["events"][0]["kind"] == "Truncated"
    assert page["next_after"] == kept[0]


def test_readers_that_leave_free_what_they_held(
    console: RunningConsole, http: httpx.Client, running: Installation, caplog: pytest.LogCaptureFixture
) -> None:
    job = held_job(running)
    before = threading.active_count()
    with ExitStack() as stack:
        for _ in range(15):
            client = stack.enter_context(console.client())
            seen = stack.enter_context(closing(messages(stack.enter_context(client.stream("GET", path(job))))))
            assert next(seen).data["job_id"] == job.id
        assert open_streams(console) == 15
        # Fewer threads than streams: waiting for entries costs none.
        eventually(lambda: threading.active_count() <= before + 8, "threads that opened the streams gone")
        assert http.get("/api/v1/health").json()["event_streams"] == 15
    eventually(lambda: open_streams(console) == 0, "streams closed")
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
    running.let_go("convert")
    running.wait(job)


def test_more_streams_than_allowed_are_refused(running: Installation) -> None:
    job = held_job(running)
    few = {"max_streams": 3, "max_streams_each": 2}
    with running_console(running.url, running.prefix, **few) as console, ExitStack() as stack:
        operator, reader = (stack.enter_context(console.client(role)) for role in ("operate", "read"))
        for client in (operator, operator, reader):
            stack.enter_context(client.stream("GET", path(job)))
        for client in (operator, reader):
            refused = client.get(path(job))
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limited")
            assert int(refused.headers["retry-after"]) > 0
    running.let_go("convert")
    running.wait(job)


def test_silence_is_broken_and_the_stream_ends_with_the_console(
    running: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.05)
    job = held_job(running)
    lines: list[str] = []
    with running_console(running.url, running.prefix) as console, console.client() as http:

        def read() -> None:
            with http.stream("GET", path(job)) as answer:
                lines.extend(answer.iter_lines())

        reader = threading.Thread(target=read)
        reader.start()
        eventually(lambda: open_streams(console) == 1, "stream open")
        eventually(lambda: ": nothing new" in lines, "a comment")
        console.server.handle_exit()
        reader.join(10)
        assert not reader.is_alive()
    running.let_go("convert")
    running.wait(job)


def test_a_stream_says_when_redis_has_gone(own_server: OwnServer, tmp_path: Path) -> None:
    installation = Installation(own_server.url, tmp_path)
    job = installation.submit()
    with (
        running_console(installation.url, installation.prefix, redis_timeout_s=0.5) as console,
        console.client() as http,
        console.client(None) as stranger,
    ):
        with http.stream("GET", path(job), headers={"Accept-Language": "zh"}) as answer:
            seen = messages(answer)
            assert next(seen).data["job_id"] == job.id
            own_server.kill()
            last = list(seen)[-1]
        assert (last.event, last.data["code"]) == ("problem", "redis_unreachable")
        assert last.data["remedy"] == ErrorCode.REDIS_UNREACHABLE.row.remedy_zh
        down = stranger.get("/health")
        assert (down.status_code, down.json()["error"]["fields"]) == (503, {})
        assert own_server.url.rpartition(":")[2].split("/")[0] not in down.text
        assert stranger.get("/health/live").status_code == 200
        assert int(http.get("/api/v1/jobs").headers["retry-after"]) > 0
    installation.client.close()
    installation.redis.close()
