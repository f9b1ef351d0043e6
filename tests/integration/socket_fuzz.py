"""Bytes that broken and hostile clients send to the console, drawn by a seed, and what comes back on each connection.

The console runs as a process of its own, so that its descriptors, memory and log can be looked at afterwards.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.integration.console.running import SECRETS, TOKENS
from tests.integration.harness import ROOT, eventually

_HOST = b"Host: 127.0.0.1\r\n"
_OPERATOR = f"Authorization: Bearer {SECRETS['operate']}\r\n".encode()
_POST = b"POST /api/v1/jobs HTTP/1.1\r\n" + _HOST
_JSON = b"Content-Type: application/json\r\n"
_SPARE = 8
"""Descriptors beyond those before: for Redis connections that a pool has opened meanwhile."""
_MORE_S = 0.5
"""How long more of an answer is awaited."""
WHOLE = b"GET /health/live HTTP/1.1\r\n" + _HOST + b"\r\n"
REQUESTS = (
    WHOLE,
    b"GET /api/v1/jobs?limit=5&label=a%3Db HTTP/1.1\r\n" + _HOST + _OPERATOR + b"\r\n",
    _POST + _JSON + b"Content-Length: 13\r\n" + _OPERATOR + b'\r\n{"upload": 1}',
    _POST + _JSON + b"Transfer-Encoding: chunked\r\n" + _OPERATOR + b"\r\n2\r\n{}\r\n0\r\n\r\n",
    b"GET /jobs HTTP/1.1\r\n" + _HOST + b"Cookie: session=x\r\nAccept-Language: zh;q=0.9\r\n\r\n",
    b"GET /jobs?state=failed&q=%22 HTTP/1.1\r\n" + _HOST + _OPERATOR + b"\r\n",
    b"GET /api/v1/jobs/20261130-000000-aaaaaa/events/stream HTTP/1.1\r\n" + _HOST + _OPERATOR + b"\r\n",
    b"POST /login HTTP/1.1\r\n" + _HOST + b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 8\r\n"
    b"\r\ntoken=%00",
    b"HEAD /metrics HTTP/1.0\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\n" + _HOST + b"\r\n",
)
PIECES = (
    b"\0", b"\r\n", b"\n", b"\r", b" ", b":", b"\xff\xfe", b"%00", b"%2e%2e/", b"..\\", b"\t", b"A" * 5000, b"9" * 400,
    b"-1", b"Content-Length: 5\r\n", b"Content-Length: +5\r\n", b"Content-Length: 5, 5\r\n", b"Connection: close\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: \x0bchunked\r\n", b"Transfer-Encoding: chunked, gzip\r\n",
    b"Expect: 100-continue\r\n", b"Upgrade: websocket\r\nConnection: upgrade\r\n", b"Upgrade: h2c\r\n",
    b"Host: other\r\n", b"Range: bytes=0-,0-,0-\r\n", b" folded\r\n", b"HTTP/0.9", b"HTTP/3.7", b"[" * 3000,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"ffffffffffffffff\r\n", b'{"a":' * 2000, b"X-Forwarded-For: ::1\r\n",
    "\u202e\U0001f600".encode(), b"\xed\xa0\x80", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
)  # fmt: skip


@dataclass(frozen=True)
class Sent:
    """What one connection sends.

    Attributes:
        data: All of it.
        piece: Bytes at a time; 0: at once.
        pause_s: Between two pieces.
        end: ``wait`` for the answer, ``half`` close first, ``reset`` at once, ``leave`` without reading.
        answers: Most answers that it may have; ``None`` where that is not clear.
    """

    data: bytes
    piece: int = 0
    pause_s: float = 0.0
    end: str = "wait"
    answers: int | None = None


def mutated(draw: random.Random) -> Sent:
    """A right request, changed in a few places."""
    data = draw.choice(REQUESTS)
    for _ in range(draw.randint(1, 4)):
        at, kind = draw.randrange(len(data) + 1), draw.randrange(5)
        if kind == 0:
            data = data[:at] + draw.choice(PIECES) + data[at:]
        elif kind == 1:
            data = data[:at]
        elif kind == 2:
            data = data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]
        elif kind == 3:
            data = data[:at] + data[at + draw.randint(1, 20) :]
        else:
            data += draw.choice(REQUESTS)
    return Sent(data, end=draw.choice(("wait",) * 8 + ("half", "reset")))


def noise(draw: random.Random) -> Sent:
    """Random bytes."""
    return Sent(draw.randbytes(draw.choice((1, 10, 100, 5000, 100_000))))


def half_header(draw: random.Random) -> Sent:
    """A header that stops anywhere; the connection stays, or is left."""
    data = draw.choice(REQUESTS)
    return Sent(
        data[: draw.randrange(1, data.index(b"\r\n\r\n"))], end=draw.choice(("wait", "half", "reset")), answers=1
    )


def trickled(draw: random.Random) -> Sent:
    """A header, a byte at a time, more slowly than the deadline allows or not."""
    return Sent(WHOLE, 1, draw.choice((0.0, 0.005, 0.05)), "wait", 1)


def bad_chunks(draw: random.Random) -> Sent:
    """Sizes that are none, too large, negative; ends that are missing; trailers."""
    size = draw.choice(
        (b"-1", b"0x5", b"fffffffffffffffff", b"5;a=" + b"b" * 9000, b"", b" 5", b"5 ", b"\xb2", b"1_0", b"5\n")
    )
    tail = draw.choice((b"0\r\n\r\n", b"0\r\nHost: x\r\n\r\n", b"\r\n\r\n", b"", b"0\n\n"))
    head = _POST + _JSON + _OPERATOR + b"Transfer-Encoding: chunked\r\n\r\n"
    return Sent(head + size + b"\r\nabcde\r\n" + tail + draw.choice((b"", WHOLE)))


def two_lengths(draw: random.Random) -> Sent:
    """A body announced in two ways, with a request hidden in it: one answer, a refusal."""
    lengths = [b"Content-Length: 4\r\n", draw.choice((b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n"))]
    draw.shuffle(lengths)
    return Sent(_POST + b"".join(lengths) + _OPERATOR + b"\r\n0\r\n\r\n" + WHOLE, answers=1)


def bare_lines(draw: random.Random) -> Sent:
    """Line feeds without carriage returns, some or all: at most the requests before are answered, then a refusal."""
    before = draw.randrange(3)
    lines = WHOLE.split(b"\r\n")
    bare = b"".join(line + draw.choice((b"\n", b"\r\n")) for line in lines[:-2]) + b"\n"
    return Sent(WHOLE * before + bare + WHOLE, answers=before + 1)


def huge(draw: random.Random) -> Sent:
    """Header lines, targets and methods of up to a megabyte, or thousands of them."""
    size = draw.choice((10_000, 70_000, 1_000_000))
    data = draw.choice((
        b"GET /" + b"a" * size + b" HTTP/1.1\r\n" + _HOST + b"\r\n",
        b"GET / HTTP/1.1\r\n" + _HOST + b"X: " + b"a" * size + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + _HOST + b"X: a\r\n" * (size // 6) + b"\r\n",
        b"A" * size + b" / HTTP/1.1\r\n\r\n",
        _POST + _JSON + _OPERATOR + f"Content-Length: {size}\r\n\r\n".encode() + b"[" * size,
    ))  # fmt: skip
    return Sent(data, answers=1)


def pipelined(draw: random.Random) -> Sent:
    """Many requests at once, read, half-read or never read."""
    count = draw.randint(2, 60)
    chosen = [draw.choice(REQUESTS[:6]) for _ in range(count)]
    return Sent(b"".join(chosen), end=draw.choice(("wait", "half", "reset", "leave")), answers=count)


KINDS: dict[str, tuple[int, Callable[[random.Random], Sent]]] = {
    "changed requests": (50, mutated),
    "random bytes": (10, noise),
    "half headers": (10, half_header),
    "byte by byte": (3, trickled),
    "bad chunks": (8, bad_chunks),
    "two lengths": (5, two_lengths),
    "bare line feeds": (5, bare_lines),
    "huge": (4, huge),
    "pipelined": (5, pipelined),
}
"""How often each is drawn, and how it is made."""


@dataclass
class Console:
    """A console's process."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def descriptors(self) -> int:
        """How many it has open."""
        return int(psutil.Process(self.process.pid).num_fds())

    def memory(self) -> int:
        """Resident bytes."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def lives(self) -> bool:
        """Whether it answers to a health probe in five seconds."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), 5, source_address=("127.0.2.1", 0)) as opened:
                opened.sendall(WHOLE)
                return bool(opened.recv(100).startswith(b"HTTP/1.1 200"))
        except OSError:
            return False


@contextmanager
def console_process(redis_url: str, prefix: str, directory: Path) -> Iterator[Console]:
    """A console with short deadlines."""
    own = {"REDIS_URL": redis_url, "KEY_PREFIX": prefix, "HOME": directory, "CONSOLE_TOKENS": json.dumps(TOKENS)}
    own |= {"CONSOLE_HEADER_S": 2, "CONSOLE_BODY_S": 2, "CONSOLE_UNREAD_S": 2, "CONSOLE_MAX_CONNECTIONS": 200}
    own |= {"CONSOLE_REQUESTS_PER_MINUTE": 10**6, "CONSOLE_FAILED_LOGINS_PER_MINUTE": 10**6}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TRAINPACK_")}
    log = directory / "console.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "api_client.cli", "console", "--json", "--port", "0"],
            cwd=ROOT,
            env=inherited | {f"TRAINPACK_{name}": str(value) for name, value in own.items()},
            stdout=subprocess.PIPE,
            stderr=file,
        )
    try:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        yield Console(process, int(said["url"].rpartition(":")[2]), log)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@dataclass
class SocketFuzz:
    """One run.

    Attributes:
        counts: Connections by kind.
        statuses: First status of each connection's answer by kind; ``none`` where it was closed without one.
        wrong: What must not be, with the number of the connection, by which it is drawn again.
    """

    console: Console
    seed: int
    counts: Counter[str] = field(default_factory=Counter)
    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def run(self, connections: int, at_once: int = 48) -> None:
        """So many connections, several at a time, from several addresses."""
        with ThreadPoolExecutor(at_once) as pool:
            for kind, number, answer, sent in pool.map(self._one, range(connections)):
                self.counts[kind] += 1
                found = re.findall(rb"HTTP/1\.1 (\d{3}) [A-Z]", answer)
                self.statuses[kind, found[0].decode() if found else "none"] += 1
                if any(status.startswith(b"5") for status in found):
                    self.wrong.append(f"{number} ({kind}): {found}: {sent.data[:300]!r}")
                if sent.answers is not None and len(found) > sent.answers:
                    self.wrong.append(
                        f"{number} ({kind}): {len(found)} answers, not {sent.answers}: {sent.data[:300]!r}"
                    )

    def _one(self, number: int) -> tuple[str, int, bytes, Sent]:
        draw = random.Random(f"{self.seed}-{number}")
        kind = draw.choices([*KINDS], [weight for weight, _ in KINDS.values()])[0]
        sent = KINDS[kind][1](draw)
        answer = b""
        with contextlib.suppress(OSError):
            answer = self._exchange(sent, f"127.0.1.{1 + number % 40}")
        return kind, number, answer, sent

    def _exchange(self, sent: Sent, source: str) -> bytes:
        answer = b""
        with socket.create_connection(("127.0.0.1", self.console.port), 20, source_address=(source, 0)) as opened:
            with contextlib.suppress(ConnectionError):
                if sent.piece:
                    for at in range(0, len(sent.data), sent.piece):
                        opened.sendall(sent.data[at : at + sent.piece])
                        time.sleep(sent.pause_s)
                else:
                    opened.settimeout(3)  # a console that has refused it need not take the rest
                    opened.sendall(sent.data)
                    opened.settimeout(20)
            if sent.end == "reset":
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif sent.end != "leave":
                if sent.end == "half":
                    opened.shutdown(socket.SHUT_WR)
                opened.settimeout(5)  # beyond the console's deadlines; what it keeps open is closed from here
                with contextlib.suppress(OSError):
                    while part := opened.recv(65536):
                        answer += part
                        opened.settimeout(_MORE_S)
        return answer


def after_fuzz(console: Console, descriptors: int) -> list[str]:
    """What is not as it was before, once everything that was left has met its deadline."""
    wrong = []
    if console.process.poll() is not None:
        return [f"the console ended with {console.process.poll()}"]
    try:
        eventually(lambda: console.descriptors() <= descriptors + _SPARE, "its descriptors are free again")
        eventually(console.lives, "it answers")
    except AssertionError as error:
        wrong.append(f"{error}; {console.descriptors()} descriptors, {descriptors} before")
    log = console.log.read_text(errors="replace")
    at = log.find("Traceback")
    if at >= 0 or '"exception"' in log:
        at = max(at, log.find('"exception"'))
        wrong.append(f"its log has a traceback: {log[max(0, at - 300) : at + 3000]}")
    return wrong
