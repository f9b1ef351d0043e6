"""What a stranger can do with sockets alone: half-sent requests, floods of connections, headers read in two ways."""

from __future__ import annotations

import contextlib
import http.client
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from api_client.console.logs import JsonFormatter, LineFormatter, LogRateLimit
from tests.integration.console.running import SECRETS, RunningConsole, running_console
from tests.integration.harness import Installation, eventually
from tests.integration.socket_fuzz import KINDS, SocketFuzz, after_fuzz, console_process

pytestmark = pytest.mark.integration
HALF = b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\nX-a: "
OPERATOR = f"Authorization: Bearer {SECRETS['operate']}\r\n".encode()


@pytest.fixture
def small(service: Installation) -> Iterator[RunningConsole]:
    """A console with few places and short deadlines."""
    bounds = {"max_connections": 40, "max_connections_each": 30, "header_s": 1.0, "body_s": 1.0, "unread_s": 1.0}
    with running_console(service.url, service.prefix, **bounds) as console:
        yield console


def port_of(console: RunningConsole) -> int:
    return int(console.url.rpartition(":")[2])


def connected(console: RunningConsole, data: bytes = b"", source: str = "127.0.0.1") -> socket.socket:
    opened = socket.create_connection(("127.0.0.1", port_of(console)), timeout=5, source_address=(source, 0))
    opened.sendall(data)
    return opened


def alive(opened: socket.socket) -> bytes:
    """One whole answer to GET /health/live: header and body may come apart, and the connection stays."""
    found = b""
    while not found.endswith(b'{"status":"ok"}'):
        part = opened.recv(65536)
        assert part, f"closed after {found!r}"
        found += part
    return found


def answer(opened: socket.socket) -> bytes:
    """Everything until the other side closes."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while part := opened.recv(65536):
            found += part
    opened.close()
    return found


def lives(console: RunningConsole, source: str = "127.0.0.1") -> bool:
    found = http.client.HTTPConnection("127.0.0.1", port_of(console), timeout=5, source_address=(source, 0))
    try:
        found.request("GET", "/health/live")
        return found.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        found.close()


def test_half_sent_headers_of_one_address_hold_up_nobody_else_and_end(small: RunningConsole) -> None:
    held = [connected(small, HALF) for _ in range(200)]
    assert lives(small, "127.0.0.2"), "another address is served meanwhile"
    eventually(lambda: lives(small), "the same address, once its headers are given up", 5)
    for each in held:
        assert answer(each)[:12] in (b"", b"HTTP/1.1 408")


def test_half_sent_headers_of_many_addresses_give_way_to_who_asks(small: RunningConsole) -> None:
    held = [connected(small, HALF, f"127.0.0.{3 + number // 20}") for number in range(80)]
    assert lives(small, "127.0.1.1"), "the oldest that only waits gives its place up"
    for each in held:
        each.close()


def test_a_header_fed_byte_by_byte_has_its_deadline(small: RunningConsole) -> None:
    opened, began = connected(small), time.monotonic()
    with contextlib.suppress(ConnectionError):
        while time.monotonic() - began < 4:
            opened.sendall(b"G" if time.monotonic() - began < 0.05 else b"E")
            time.sleep(0.05)
    assert time.monotonic() - began < 3
    opened.close()


def test_a_body_that_does_not_come_has_its_deadline(small: RunningConsole) -> None:
    head = b"POST /api/v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n" + OPERATOR
    began = time.monotonic()
    got = answer(connected(small, head + b"\r\n{"))
    assert got.startswith(b"HTTP/1.1 408")
    assert time.monotonic() - began < 4


def test_answers_that_nobody_reads_hold_up_nobody_for_long(small: RunningConsole) -> None:
    asked = 400  # answers of 10 MB, more than the system keeps for a connection (tcp_wmem)
    held = [connected(small, b"GET /static/console.css HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * asked) for _ in range(4)]

    ours = {opened.getsockname()[1] for opened in held}

    def given_up() -> bool:
        assert lives(small, "127.0.1.1")
        return not ours & {
            c.raddr.port for c in psutil.Process().net_connections("tcp") if c.raddr and c.status == "ESTABLISHED"
        }

    eventually(given_up, "the connections are given up")
    for opened in held:
        assert answer(opened).count(b"HTTP/1.1 200") < asked


def test_a_kept_connection_has_a_new_deadline_for_each_header(small: RunningConsole) -> None:
    whole = b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    opened = connected(small, whole)
    assert b"200 OK" in alive(opened)
    time.sleep(1.5)  # idle: that is what keeping a connection is for
    opened.sendall(whole)
    assert b"200 OK" in alive(opened)
    opened.sendall(HALF)
    assert answer(opened).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /health/live HTTP/1.1\nHost: 127.0.0.1\n\n",
        b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\nX-a: b\r\n\r\n",
        b"\nGET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"POST /api/v1/jobs HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /api/v1/jobs HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\ncontent-length: 0\r\n\r\n0\r\n\r\n",
        b"POST /api/v1/jobs HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"GET /health/live HTTP/1.1\r\nHost : 127.0.0.1\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    ],
    ids=["bare-all", "bare-one", "bare-first", "two-lengths", "two-lengths-2", "lengths-differ", "blank", "hosts"],
)
def test_what_two_servers_might_read_differently_is_refused(small: RunningConsole, request_bytes: bytes) -> None:
    got = answer(connected(small, request_bytes))
    assert got.startswith(b"HTTP/1.1 400")
    assert got.count(b"HTTP/1.1") == 1


def test_a_request_behind_another_is_read_as_strictly(small: RunningConsole) -> None:
    first = b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    got = answer(connected(small, first + b"GET /health/live HTTP/1.1\nHost: 127.0.0.1\n\n"))
    assert got.count(b"200 OK") == 1
    assert got.count(b"HTTP/1.1 400") == 1


def test_lines_of_one_kind_are_few_and_say_how_many_were_left_out() -> None:
    now = [0.0]
    limit, written = LogRateLimit(lambda: now[0]), []
    for at in [*[0.0] * 5000, 11.0]:
        now[0] = at
        record = logging.LogRecord("asyncio", logging.ERROR, "", 0, "accept failed: %s", ("why",), None)
        if limit.filter(record):
            written.append(LineFormatter().format(record))
    assert len(written) == 11
    assert written[-1].endswith("accept failed: why (4990 more like it were left out)")
    other = logging.LogRecord("asyncio", logging.ERROR, "", 0, "another kind", (), None)
    assert limit.filter(other)


def test_a_line_is_short_whatever_was_asked_for() -> None:
    record = logging.LogRecord("uvicorn", logging.INFO, "", 0, "GET %s", ("/" + "a" * 60_000,), None)
    for line in (LineFormatter().format(record), JsonFormatter().format(record)):
        assert len(line) < 2500
        assert "GET /aaa" in line


def test_whatever_bytes_come_it_answers_and_goes_on(service: Installation, tmp_path: Path) -> None:
    with console_process(service.url, service.prefix, tmp_path) as console:
        assert console.lives()
        descriptors, fuzz = console.descriptors(), SocketFuzz(console, seed=20261130)
        fuzz.run(250)
        assert not fuzz.wrong
        assert not after_fuzz(console, descriptors)
    met = {status for _, status in fuzz.statuses}
    assert {"200", "400", "408"} <= met
    assert {kind for kind, _ in fuzz.statuses} == set(KINDS)
