"""What every request passes: host, site, token, role, body; and what every answer carries. No service is needed."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api_client.client import PackagingClient
from api_client.console.admission import SESSION_COOKIE
from api_client.console.app import create_app
from api_client.console.gate import HEADERS
from api_client.console.login import local_path
from api_client.console.logs import JsonFormatter, LineFormatter
from api_client.console.requests import refuse_relative_paths
from api_client.console.settings import load_console_settings
from api_client.contract.errors import ErrorCode, PackagingError

TOKENS = [{"name": role, "role": role, "secret": f"{role}-0123456789abcdef"} for role in ("read", "submit", "operate")]
OLD = {"name": "old", "role": "read", "secret": "old-0123456789abcdef", "expires_at": datetime(2020, 1, 1, tzinfo=UTC)}


def nowhere(_: Any) -> PackagingClient:
    """A client of a Redis that is not there: what reaches it is answered with 503."""
    return PackagingClient("redis://127.0.0.1:1/0", timeout_s=0.5)


def client(url: str = "http://127.0.0.1", **settings: Any) -> TestClient:
    found = load_console_settings({}, **settings)
    return TestClient(create_app(found, nowhere), base_url=url, client=("192.0.2.7", 1234))


@pytest.fixture
def http() -> Iterator[TestClient]:
    with client("https://pack.example.com", host="0.0.0.0", tokens=[*TOKENS, OLD]) as found:
        yield found


def bearer(role: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {role}-0123456789abcdef"}


def code(answer: Any) -> tuple[int, str]:
    assert set(answer.json()) == {"error"}
    return answer.status_code, answer.json()["error"]["code"]


def test_a_token_is_needed_and_must_be_valid(http: TestClient) -> None:
    missing = http.get("/api/v1/quant-types")
    assert code(missing) == (401, "unauthenticated")
    assert missing.headers["www-authenticate"].startswith("Bearer")
    assert code(http.get("/api/v1/quant-types", headers={"Authorization": "Bearer wrong"})) == (401, "unauthenticated")
    assert code(http.get("/api/v1/quant-types", headers={"Authorization": "Basic eDp5"})) == (401, "unauthenticated")
    assert code(http.get("/api/v1/quant-types", headers=bearer("old"))) == (401, "token_expired")
    assert http.get("/api/v1/quant-types", headers=bearer("read")).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "least"),
    [
        ("GET", "/api/v1/jobs", "read"),
        ("GET", "/api/v1/workers", "read"),
        ("GET", "/api/v1/health", "read"),
        ("POST", "/api/v1/jobs", "submit"),
        ("POST", "/api/v1/jobs/20200101-000000-aaaaaa/cancel", "submit"),
        ("POST", "/api/v1/jobs/20200101-000000-aaaaaa/replay", "submit"),
        ("GET", "/api/v1/checkpoints?run=/x", "submit"),
        ("GET", "/api/v1/recommend?model=/x", "submit"),
        ("GET", "/api/v1/space?path=/x", "submit"),
        ("POST", "/api/v1/replays", "operate"),
    ],
)
def test_each_route_asks_for_its_role(http: TestClient, method: str, path: str, least: str) -> None:
    bodies = {
        "/api/v1/jobs": {"base_model": "/b", "checkpoint": "/r/c", "output_dir": "/o"},
        "/api/v1/replays": {"since": "2026-01-01T00:00:00Z"},
    }
    roles = ["read", "submit", "operate"]
    for role in roles:
        answer = http.request(method, path, headers=bearer(role), json=bodies.get(path) if method == "POST" else None)
        expected = (503, "redis_unreachable") if roles.index(role) >= roles.index(least) else (403, "permission_denied")
        assert code(answer) == expected, role


def test_a_session_is_started_by_a_token_and_needs_its_csrf_token_to_change_anything(http: TestClient) -> None:
    wrong = http.post("/login", data={"token": "wrong", "to": "/jobs?x=1"}, follow_redirects=False)
    assert wrong.headers["location"] == "/login?failed=unauthenticated&to=%2Fjobs%3Fx%3D1"
    answer = http.post("/login", data={"token": "submit-0123456789abcdef", "to": "//evil"}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert {"HttpOnly", "Secure", "SameSite=lax", "Path=/"} <= set(cookie.split("; "))
    assert http.get("/api/v1/quant-types").status_code == 200
    cancel = "/api/v1/jobs/20200101-000000-aaaaaa/cancel"
    assert code(http.post(cancel)) == (403, "csrf_failed")
    assert code(http.post(cancel, data={"csrf_token": "0" * 64})) == (403, "csrf_failed")
    app: Any = http.app
    csrf = app.state.admission.identities.from_session(http.cookies[SESSION_COOKIE]).csrf_token
    assert code(http.post(cancel, headers={"X-CSRF-Token": csrf})) == (503, "redis_unreachable")
    assert code(http.post(cancel, data={"csrf_token": csrf})) == (503, "redis_unreachable")
    http.post("/logout", follow_redirects=False)
    assert code(http.get("/api/v1/quant-types")) == (401, "unauthenticated")


def test_another_site_may_not_send_anything(http: TestClient) -> None:
    for origin in ("https://evil.example", "null", "https://pack.example.com.evil", "http://pack.example.com:81"):
        assert code(http.post("/logout", headers={"Origin": origin})) == (403, "csrf_failed")
    same = http.post("/logout", headers={"Origin": "https://pack.example.com"}, follow_redirects=False)
    assert same.status_code == 303
    read = http.get("/api/v1/quant-types", headers=bearer("read") | {"Origin": "https://evil.example"})
    assert not [name for name in read.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.evil:8321", "[::2]"])
def test_an_open_console_answers_to_loopback_names_only(host: str) -> None:
    with client() as http:
        assert code(http.get("/api/v1/quant-types", headers={"Host": host})) == (421, "host_not_allowed")
        for own in ("localhost", "LOCALHOST:8321", "127.0.0.1:8321", "[::1]:8321", "[::1]"):
            assert http.get("/api/v1/quant-types", headers={"Host": own}).status_code == 200


def test_a_console_with_tokens_may_be_bound_to_its_names() -> None:
    with client(tokens=TOKENS, allowed_hosts="pack.example.com") as http:
        assert code(http.get("/api/v1/quant-types")) == (421, "host_not_allowed")
        assert code(http.get("/api/v1/quant-types", headers={"Host": "pack.example.com"})) == (401, "unauthenticated")
        wrong = {"Authorization": "Bearer not-a-token-at-all"}
        assert code(http.get("/api/v1/quant-types", headers=wrong)) == (421, "host_not_allowed")


def test_probes_and_programs_with_a_token_may_ask_by_a_pods_address() -> None:
    with client(tokens=TOKENS, allowed_hosts="pack.example.com") as http:
        pod = {"Host": "10.0.0.7:8321"}
        assert http.get("/health/live", headers=pod).status_code == 200
        assert http.get("/metrics", headers=pod | bearer("read")).status_code == 200
        assert code(http.get("/metrics", headers=pod)) == (421, "host_not_allowed")


def test_a_body_is_bounded_with_and_without_its_length(http: TestClient) -> None:
    headers = bearer("submit") | {"Content-Type": "application/json"}
    ten_mb = b" " * (10 * 2**20)

    def chunks() -> Iterator[bytes]:
        yield from (ten_mb[:65536] for _ in range(160))

    for content in (ten_mb, chunks()):
        assert code(http.post("/api/v1/jobs", content=content, headers=headers)) == (413, "request_too_large")
    fits = b" " * (2**20 - 2) + b"{}"
    assert code(http.post("/api/v1/jobs", content=fits, headers=headers)) == (422, "checkpoint_required")


def test_too_many_requests_are_held_up_for_whom_sends_them() -> None:
    with client(tokens=TOKENS, requests_per_minute=5, failed_logins_per_minute=2) as http:
        for _ in range(5):
            assert http.get("/api/v1/quant-types", headers=bearer("read")).status_code == 200
        held = http.get("/api/v1/quant-types", headers=bearer("read"))
        assert code(held) == (429, "rate_limited")
        assert int(held.headers["retry-after"]) > 0
        wrong = [http.get("/api/v1/jobs", headers={"Authorization": "Bearer x"}).status_code for _ in range(4)]
        assert wrong == [401, 401, 429, 429]
        assert http.get("/api/v1/quant-types", headers=bearer("submit")).status_code == 200, "a right token is let in"


def test_every_answer_carries_the_headers(http: TestClient) -> None:
    for path in ("/health/live", "/api/v1/quant-types", "/nope", "/api/v1/openapi.json"):
        answer = http.get(path)
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
        assert answer.headers["cache-control"] == "no-store"
        assert "server" not in answer.headers
    assert "unsafe" not in HEADERS["Content-Security-Policy"]


def test_unknown_addresses_and_methods_are_told_apart(http: TestClient) -> None:
    assert code(http.get("/api/v1/nothing")) == (404, "address_not_found")
    wrong = http.delete("/api/v1/jobs")
    assert code(wrong) == (405, "address_not_found")
    assert wrong.headers["allow"] == "GET, POST"


def test_a_fault_of_the_console_says_nothing_of_its_inside(
    http: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("a secret inside")

    monkeypatch.setattr(PackagingClient, "workers", broken)
    answer = http.get("/api/v1/workers", headers=bearer("read"))
    assert code(answer) == (500, "internal_error")
    assert "secret" not in answer.text
    assert answer.headers["x-frame-options"] == "DENY"
    assert "a secret inside" in caplog.text


@pytest.mark.parametrize(
    "to", ["//evil", "https://evil", "/\\evil", "\\/evil", "/a\r\nSet-Cookie: x", "", "javascript:x"]
)
def test_a_login_leads_nowhere_else(to: str) -> None:
    assert local_path(to) == "/"
    assert local_path("/jobs?state=failed") == "/jobs?state=failed"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"base_model": "models/x"}, "base_model"),
        ({"output_dir": "~/out"}, "output_dir"),
        ({"checkpoint": "./checkpoint-1"}, "checkpoint"),
        ({"checkpoint": ".."}, "checkpoint"),
        ({"task": {"output_dir": "run"}}, "task.output_dir"),
        ({"imatrix": {"path": "m.gguf"}}, "imatrix.path"),
        ({"imatrix": "m.gguf"}, "imatrix"),
    ],
)
def test_relative_paths_mean_nothing_over_http(request_: dict[str, Any], field: str) -> None:
    with pytest.raises(PackagingError) as caught:
        refuse_relative_paths(request_)
    assert (caught.value.code, caught.value.fields["field"]) == (ErrorCode.REQUEST_INVALID, field)


def test_words_urls_and_whole_paths_are_taken() -> None:
    taken = {"checkpoint": "best", "base_model": "hf://a/b", "output_dir": "/o", "imatrix": "auto", "task": None}
    assert refuse_relative_paths(taken) is taken
    assert refuse_relative_paths([]) == []


def test_control_characters_do_not_reach_the_log_s_lines() -> None:
    record = logging.LogRecord("api_client", logging.INFO, "", 1, "%s", ("a\x1b[31m\r\nFAKE\u202e entry",), None)
    line = LineFormatter().format(record)
    assert "\n" not in line
    assert "\x1b" not in line
    assert r"\x1b[31m FAKE\x202e entry" in line
    entry = json.loads(JsonFormatter().format(record))
    assert entry["event"] == "a\x1b[31m\r\nFAKE\u202e entry"
    assert "\n" not in JsonFormatter().format(record)


def test_the_console_imports_neither_torch_nor_the_worker() -> None:
    sources = (Path(__file__).parents[3] / "api_client" / "console").rglob("*.py")
    for source in sources:
        text = source.read_text("utf-8")
        assert not any(
            f"{verb} {name}" in text for verb in ("import", "from") for name in ("torch", "worker", "config.")
        ), source
