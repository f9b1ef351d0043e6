"""What the pages answer without a browser: errors as pages, roles, filters, paging, forms that keep their values."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from html import unescape
from pathlib import Path

import httpx
import pytest

from api_client.console.admission import SESSION_COOKIE
from api_client.console.pages.jobs import PAGE
from api_client.contract.fleet import WorkerInfo
from tests.integration.console.running import SECRETS, RunningConsole, running_console
from tests.integration.harness import Installation

pytestmark = pytest.mark.integration
BROWSER = {"Accept": "text/html", "Accept-Language": "en"}


@pytest.fixture
def pages(idle: RunningConsole) -> Iterator[httpx.Client]:
    with idle.client(None) as client:
        client.headers.update(BROWSER)
        yield client


def text(answer: httpx.Response) -> str:
    """What a page says, tags left out."""
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", answer.text)))


def form(**values: object) -> dict[str, object]:
    plain = {"form": "f", "source": "paths", "base_model": "/b", "checkpoint": "/r/checkpoint-1", "output_dir": "/o"}
    return plain | values


def test_a_job_that_does_not_exist(pages: httpx.Client) -> None:
    answer = pages.get("/jobs/20260101-000000-aaaaaa")
    assert answer.status_code == 404
    assert "There is no such job" in text(answer)
    assert "trainpack list" in text(answer), "the remedy is shown"
    assert pages.get("/nothing").status_code == 404
    assert "作业不存在" in text(pages.get("/jobs/x", headers={"Accept-Language": "fr, zh-CN;q=0.8, en;q=0.5"}))


def test_a_service_that_does_not_answer(tmp_path: Path) -> None:
    with running_console("redis://127.0.0.1:1/0", "none", tokens=()) as console, console.client(None) as client:
        answer = client.get("/jobs", headers=BROWSER)
    assert answer.status_code == 503
    assert "The service does not answer" in text(answer)
    assert "redis_unreachable" in text(answer)


def test_filters_and_pages(pages: httpx.Client, service: Installation) -> None:
    jobs = [service.submit(f"out{number}", labels={"part": str(number % 2)}) for number in range(PAGE + 2)]
    first = pages.get("/jobs")
    assert f"{PAGE} of {PAGE + 2}" in text(first)
    older = unescape(str(re.findall(r'href="([^"]+)" rel="next"', first.text)[0]))
    second = pages.get(older)
    assert jobs[0].id in second.text
    assert jobs[1].id in second.text
    assert f"/jobs/{jobs[2].id}" not in second.text
    odd = pages.get("/jobs", params={"label": "part=1", "state": "queued", "since": "1h"})
    assert jobs[1].id in odd.text
    assert jobs[2].id not in odd.text
    assert "No job matches this filter" in text(pages.get("/jobs", params={"label": "part=7"}))
    wrong = pages.get("/jobs", params={"label": "part"})
    assert wrong.status_code == 422
    assert "part is not of the form key=value" in text(wrong)
    assert pages.get("/jobs", params={"state": "sleeping", "since": "never"}).status_code == 200


def test_empty_pages_say_what_to_do(pages: httpx.Client) -> None:
    assert "No jobs yet" in text(pages.get("/jobs"))
    assert "No worker is running" in text(pages.get("/workers"))
    assert "nobody takes from it" in text(pages.get("/queues"))


def test_a_stage_that_only_a_newer_worker_knows_is_shown_by_its_name(
    pages: httpx.Client, service: Installation
) -> None:
    now = datetime.now(UTC)
    newer = WorkerInfo(
        name="w1",
        host="h",
        pid=1,
        version="9.0",
        device="cpu",
        slots=1,
        queues=("packaging.heavy",),
        running=("20260101-000000-aaaaaa:polish:1",),
        draining=False,
        torch_loaded=False,
        started_at=now,
        last_heartbeat_at=now,
    )
    service.redis.zadd(service.keys.named("workers"), {"w1": now.timestamp()})
    service.redis.hset(service.keys.worker("w1"), "info", newer.model_dump_json())
    page = pages.get("/workers")
    assert page.status_code == 200
    assert "polish · 20260101-000000-aaaaaa" in text(page)


@pytest.mark.parametrize(
    ("values", "field", "code"),
    [
        ({"base_model": "models/base"}, "base_model", "request_invalid"),
        ({"base_model": ""}, "base_model", "base_model_required"),
        ({"checkpoint": ""}, "checkpoint", "checkpoint_required"),
        ({"output_dir": ""}, "output_dir", "output_dir_required"),
        ({"types_shown": "1"}, "quant_types", "quant_types_empty"),
        ({"quant_types": "Q9_X", "types_shown": "1"}, "quant_types", "quant_type_unknown"),
        ({"labels": "team"}, "labels", "request_invalid"),
        ({"priority": "12"}, "priority", "request_invalid"),
        ({"imatrix": "file"}, "imatrix", "request_invalid"),
        ({"model_name": "../x"}, "model_name", "request_invalid"),
        ({"source": "task", "task_id": "t", "run": "/r", "task_status": "running"}, "task_status", "task_not_pack"),
        ({"source": "task", "run": "/r"}, "task_id", "request_invalid"),
    ],
)
def test_what_is_wrong_stands_at_its_field(
    pages: httpx.Client, service: Installation, values: dict[str, str], field: str, code: str
) -> None:
    sent = form(**{"model_name": "my “model”"} | values)
    answer = pages.post("/new", data=sent)
    assert answer.status_code == 422
    problem = re.search(rf'id="{field}-problem".*?</div>', answer.text, re.DOTALL)
    assert problem is not None
    assert code in problem[0]
    assert f'href="#{field}"' in answer.text, "the note at the top leads to the field"
    if "model_name" not in values:
        assert 'value="my “model”"' in answer.text, "the form keeps its values"
    assert service.client.list() == []


def test_paths_with_anything_in_them(pages: httpx.Client, service: Installation) -> None:
    path = "/模型/a b/../ü & <i>"
    answer = pages.post("/new", data=form(base_model=path))
    assert answer.status_code == 303
    [job] = service.client.list()
    assert job.request.base_model == path
    assert job.request.idempotency_key == "console:f"
    page = pages.get(answer.headers["location"])
    assert "<i>" not in page.text
    assert path in unescape(page.text)
    again = pages.get(f"/new?like={job.id}")
    assert again.status_code == 303
    assert path in unescape(pages.get(again.headers["location"]).text)


def test_the_part_that_the_script_fetches_leaves_out_the_log(pages: httpx.Client, service: Installation) -> None:
    job = service.submit()
    whole, status = (pages.get(f"/jobs/{job.id}{query}") for query in ("", "?part=status"))
    assert "Job submitted" in whole.text
    assert "Job submitted" not in status.text
    for region in ("job-state", "stages", "facts", "outputs"):
        parts = [
            re.search(rf'id="{region}".*?</(?:ol|dl|section|span)>', page.text, re.DOTALL) for page in (whole, status)
        ]
        assert parts[0] is not None
        assert parts[1] is not None
        assert parts[0][0] == parts[1][0]


def test_replaying_what_runs_is_told_on_the_page(pages: httpx.Client, service: Installation) -> None:
    job = service.submit()
    refused = pages.post(f"/jobs/{job.id}/replay", data={"from_stage": ""})
    assert refused.status_code == 409
    assert "job_running" in text(refused)
    assert pages.post(f"/jobs/{job.id}/cancel").status_code == 303
    assert service.client.get(job.id).state == "cancelled"
    assert "job_finished" in text(pages.post(f"/jobs/{job.id}/cancel"))
    assert "stage_not_in_plan" in text(pages.post(f"/jobs/{job.id}/replay", data={"from_stage": "export_lora"}))
    assert pages.post(f"/jobs/{job.id}/replay", data={"from_stage": "merge"}).status_code == 303


def test_who_may_only_read(guarded: RunningConsole, service: Installation) -> None:
    job = service.submit()
    with guarded.client(None) as client:
        client.headers.update(BROWSER)
        assert "Log in to go on" in text(client.get("/jobs"))
        entered = client.post("/login", data={"token": SECRETS["read"], "to": "https://elsewhere.example/"})
        assert entered.headers["location"] == "/"
        assert SESSION_COOKIE in client.cookies
        page = client.get(f"/jobs/{job.id}")
        assert page.status_code == 200
        assert "Cancel job" not in text(page)
        assert client.get("/new").status_code == 403
        refused = client.post(f"/jobs/{job.id}/cancel")
        assert refused.status_code == 403
        assert "permission_denied" in text(refused)


def test_a_form_without_its_token_is_refused(guarded: RunningConsole, service: Installation) -> None:
    with guarded.client(None) as client:
        client.headers.update(BROWSER)
        client.post("/login", data={"token": SECRETS["submit"]})
        assert "csrf_failed" in text(client.post("/new", data=form()))
        page = client.get("/new?form=f")
        token = str(re.findall(r'name="csrf_token" value="([0-9a-f]{64})">\s*Start', page.text)[0])
        assert client.post("/new", data=form(csrf_token=token)).status_code == 303
    assert len(service.client.list()) == 1
