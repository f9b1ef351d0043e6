"""Jobs over HTTP: what the client can do, with a real Valkey and a real worker."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from tests.integration.console.running import RunningConsole, messages
from tests.integration.harness import Installation, eventually

pytestmark = pytest.mark.integration
UNKNOWN = "20200101-000000-aaaaaa"


def body(running: Installation, name: str = "out", **values: Any) -> dict[str, Any]:
    return running.request(name, **values).model_dump(mode="json", exclude_unset=True)


def submit(http: httpx.Client, running: Installation, name: str = "out", **values: Any) -> dict[str, Any]:
    answer = http.post("/api/v1/jobs", json=body(running, name, **values))
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/api/v1/jobs/{answer.json()['id']}"
    return dict(answer.json())


def follow(http: httpx.Client, job_id: str, **options: Any) -> list[Any]:
    with http.stream("GET", f"/api/v1/jobs/{job_id}/events/stream", **options) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        return list(messages(answer))


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == {"error"}
    error = dict(answer.json()["error"])
    assert set(error) == {"code", "message", "remedy", "fields"}
    assert error["message"]
    assert error["remedy"]
    return error


def test_a_job_is_submitted_followed_and_its_outputs_listed(http: httpx.Client, running: Installation) -> None:
    job = submit(http, running)
    seen = follow(http, job["id"])
    assert seen[-1].event == "end"
    assert seen[-1].data == {"state": "succeeded"}
    log = [message.data["message"] for message in seen[:-1]]
    assert log == running.messages(job["id"])
    ids = [message.id for message in seen[:-1]]
    assert len(set(ids)) == len(ids)
    done = http.get(f"/api/v1/jobs/{job['id']}").json()
    assert (done["state"], {stage["state"] for stage in done["stages"]}) == ("succeeded", {"succeeded"})
    listed = http.get(f"/api/v1/jobs/{job['id']}/outputs").json()
    assert [one["name"] for one in listed["outputs"]] == [one.name for one in running.client.outputs(job["id"])]
    assert all(one["link"] is None for one in listed["outputs"])
    missing = error_of(http.get(f"/api/v1/jobs/{job['id']}/outputs/{listed['outputs'][0]['name']}"), 404)
    assert missing["code"] == "output_not_found"
    assert "was not uploaded" in missing["message"]
    for name in ("%2e%2e%2fpasswd", "x%00y", "%E4%B8%AD"):
        error_of(http.get(f"/api/v1/jobs/{job['id']}/outputs/{name}"), 404)


def test_remedies_come_in_the_language_that_is_asked_for(http: httpx.Client) -> None:
    for language, word in (("zh-CN,zh;q=0.9,en;q=0.8", "核对编号"), ("fr", "trainpack list")):
        answer = http.get(f"/api/v1/jobs/{UNKNOWN}", headers={"Accept-Language": language})
        assert word in error_of(answer, 404)["remedy"]
        assert "Accept-Language" in answer.headers["vary"]
    assert answer.headers["content-language"] == "en"


def test_two_equal_submits_with_one_key_make_one_job(http: httpx.Client, running: Installation) -> None:
    jobs = [submit(http, running, idempotency_key=running.directory.name) for _ in range(2)]
    assert jobs[0]["id"] == jobs[1]["id"]
    other = body(running, "elsewhere", idempotency_key=running.directory.name)
    assert error_of(http.post("/api/v1/jobs", json=other), 409)["code"] == "idempotency_conflict"


def test_a_running_job_is_cancelled_and_a_cancelled_one_replayed(http: httpx.Client, running: Installation) -> None:
    job = submit(http, running, labels={"convert": "hold"})
    running.held("convert")
    assert error_of(http.post(f"/api/v1/jobs/{job['id']}/replay"), 409)["code"] == "job_running"
    assert http.post(f"/api/v1/jobs/{job['id']}/cancel").json()["cancel_requested"] is True
    assert follow(http, job["id"])[-1].data["state"] == "cancelled"
    assert error_of(http.post(f"/api/v1/jobs/{job['id']}/cancel"), 409)["code"] == "job_finished"
    running.let_go("convert")
    wrong = http.post(f"/api/v1/jobs/{job['id']}/replay", json={"from_stage": "export_lora"})
    assert error_of(wrong, 422)["code"] == "stage_not_in_plan"
    replayed = http.post(f"/api/v1/jobs/{job['id']}/replay", json={"from_stage": "convert"}).json()
    assert replayed["state"] in ("queued", "running")
    assert follow(http, job["id"])[-1].data["state"] == "succeeded"


def test_failed_jobs_are_replayed_together(http: httpx.Client, running: Installation) -> None:
    run = running.directory.name
    job = submit(http, running, labels={"merge": "permanent", "run": run})
    eventually(lambda: http.get(f"/api/v1/jobs/{job['id']}").json()["state"] == "failed", "failed")
    failed = http.get(f"/api/v1/jobs/{job['id']}").json()
    found = http.get("/api/v1/jobs", params={"state": "failed", "label": f"run={run}"}).json()
    assert [one["id"] for one in found["jobs"]] == [job["id"]]
    other = {"since": failed["created_at"], "code": "upload_failed"}
    assert http.post("/api/v1/replays", json=other).json() == {"job_ids": []}
    same = {"since": failed["created_at"], "code": failed["error"]["code"]}
    assert http.post("/api/v1/replays", json=same).json() == {"job_ids": [job["id"]]}
    again = eventually(lambda: running.runs().count("start merge 2"), "second attempt")
    assert again == 1


def test_lists_come_in_pages_and_can_be_filtered(http: httpx.Client, running: Installation) -> None:
    run = running.directory.name
    ids = [submit(http, running, f"out-{number}", labels={"run": run, "n": str(number)})["id"] for number in range(5)]
    seen: list[str] = []
    cursor: str | None = None
    for size in (2, 2, 1):
        query = {"label": f"run={run}", "limit": "2"} | ({"cursor": cursor} if cursor else {})
        page = http.get("/api/v1/jobs", params=query).json()
        assert len(page["jobs"]) == size
        seen += [job["id"] for job in page["jobs"]]
        cursor = page["next_cursor"]
    assert cursor is None
    assert sorted(seen) == sorted(ids)
    both = http.get("/api/v1/jobs", params=[("label", f"run={run}"), ("label", "n=3")]).json()["jobs"]
    assert [job["id"] for job in both] == [ids[3]]
    nothing = http.get("/api/v1/jobs", params={"label": "run=none such", "since": "2999-01-01T00:00:00Z"})
    assert (nothing.status_code, nothing.json()) == (200, {"jobs": [], "next_cursor": None})


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("state=asleep", "query.state"),
        ("label=nothing", "label"),
        ("label=a=1&label=a=2", "label"),
        ("since=yesterday", "query.since"),
        ("limit=0", "query.limit"),
        ("cursor=nonsense", "cursor"),
    ],
)
def test_a_wrong_filter_is_named(http: httpx.Client, query: str, field: str) -> None:
    error = error_of(http.get(f"/api/v1/jobs?{query}"), 422)
    assert (error["code"], error["fields"]["field"]) == ("request_invalid", field)


@pytest.mark.parametrize("job_id", [UNKNOWN, "nope", "..", "a}:job", "%00", "%E4%B8%AD", "x" * 3000])
def test_an_unknown_job_is_404_everywhere(http: httpx.Client, job_id: str) -> None:
    for method, tail in (
        ("GET", ""),
        ("GET", "/events"),
        ("GET", "/events/stream"),
        ("GET", "/outputs"),
        ("GET", "/outputs/x.gguf"),
        ("POST", "/cancel"),
        ("POST", "/replay"),
    ):
        url = f"/api/v1/jobs/{job_id}{tail}"
        error = error_of(http.request(method, url), 404)
        assert error["code"] in ("job_not_found", "address_not_found"), url  # httpx takes ".." out of the path


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"quant_types": ["Q4_K_X"]}, "quant_type_unknown"),
        ({"tempalte": "merge"}, "unknown_field"),
        ({"template": "none"}, "unknown_template"),
        ({"options": {"quantize": False}}, "template_locked"),
        ({"priority": 10}, "request_invalid"),
        ({"labels": {"a=b": "c"}}, "request_invalid"),
        ({"output_dir": None}, "output_dir_required"),
        ({"output_dir": "relative/../path"}, "request_invalid"),
        ({"checkpoint": "~/run/checkpoint-9"}, "request_invalid"),
        ({"base_model": "hf:/x"}, "request_invalid"),
        ({"imatrix": "matrix.gguf"}, "request_invalid"),
    ],
)
def test_a_wrong_request_is_refused_with_its_code(
    http: httpx.Client, running: Installation, change: dict[str, Any], code: str
) -> None:
    error = error_of(http.post("/api/v1/jobs", json=body(running) | change), 422)
    assert error["code"] == code


def test_what_is_no_json_is_refused(http: httpx.Client) -> None:
    headers = {"Content-Type": "application/json"}
    for content in (b"{", b"[]", b"", b"\xff", b'{"labels": {"\\ud800": 1}}', b'{"\\ud800": 1}', b"NaN"):
        error_of(http.post("/api/v1/jobs", content=content, headers=headers), 422)
    error_of(http.post("/api/v1/jobs", content=b"{}", headers={"Content-Type": "text/plain"}), 422)


def test_html_in_a_label_and_odd_paths_come_back_as_data(http: httpx.Client, running: Installation) -> None:
    labels = {"note": "<script>alert(1)</script>", "更多": "标签 & \"'"}
    output = "out dir/模型 ü/x"
    job = submit(http, running, output, labels=labels)
    answer = http.get(f"/api/v1/jobs/{job['id']}")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.json()["request"]["labels"] == labels
    assert answer.json()["request"]["output_dir"].endswith(output)
    assert follow(http, job["id"])[-1].data["state"] == "succeeded"


def test_the_service_shows_its_workers_queues_and_health(
    console: RunningConsole, http: httpx.Client, running: Installation
) -> None:
    workers = http.get("/api/v1/workers").json()["workers"]
    assert [worker["pid"] for worker in workers] == [running.workers[0].pid]
    queues = http.get("/api/v1/queues").json()["queues"]
    assert {"packaging.heavy", "packaging.io"} <= {queue["name"] for queue in queues}
    health = http.get("/api/v1/health").json()
    assert health["workers"] == 1
    assert health["warnings"]
    metrics = http.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    assert "trainpack_redis_up 1.0" in metrics.text
    with console.client(None) as stranger:
        error_of(stranger.get("/metrics"), 401)
        assert stranger.get("/health").json() == {"status": "ok"}
        assert stranger.get("/health/live").json() == {"status": "ok"}
        error_of(stranger.get("/api/v1/health"), 401)


def test_templates_and_quant_types_are_those_of_the_contract(http: httpx.Client) -> None:
    names = [template["name"] for template in http.get("/api/v1/templates").json()["templates"]]
    assert names[:5] == ["merge_quantize", "merge", "quantize_base", "lora_only", "custom"]
    quants = http.get("/api/v1/quant-types").json()["quant_types"]
    assert len(quants) == 35
    assert {q["name"] for q in quants if q["recommended"]} == {"Q4_K_M", "Q5_K_M", "Q8_0"}


def test_ids_in_answers_are_what_the_path_takes(http: httpx.Client, running: Installation) -> None:
    job = submit(http, running)
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-z]{6}", job["id"])
