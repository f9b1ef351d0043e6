"""One POST against real servers: statuses, redirects, silence, names that resolve anew."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.callbacks.receiver import Receiver
from worker.service.callbacks import addresses
from worker.service.callbacks.post import CallbackFailed, post


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as found:
        yield found


def send(url: str, timeout_s: float = 5, allow_private: bool = True) -> int:
    return post(url, b'{"a": 1}', {"X-Test": "yes"}, allow_private=allow_private, timeout_s=timeout_s)


def test_sends_body_headers_and_query(receiver: Receiver) -> None:
    assert send(receiver.url("/done?a=b")) == 200
    [got] = receiver.got
    assert (got.path, got.body, got.headers["x-test"]) == ("/done?a=b", b'{"a": 1}', "yes")
    assert got.headers["host"] == f"127.0.0.1:{receiver.port}"


@pytest.mark.parametrize(("status", "permanent"), [(500, False), (404, False), (429, False), (410, True), (302, True)])
def test_other_statuses_fail(receiver: Receiver, status: int, permanent: bool) -> None:
    receiver.answers.append(status)
    with pytest.raises(CallbackFailed, match=f"answered {status}") as caught:
        send(receiver.url())
    assert caught.value.permanent is permanent


def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    receiver.answers.append(307)
    with pytest.raises(CallbackFailed, match="redirects are not followed"):
        send(receiver.url())
    assert len(receiver.got) == 1


def test_private_addresses_are_not_even_connected_to(receiver: Receiver) -> None:
    for host in ("127.0.0.1", "localhost"):
        with pytest.raises(CallbackFailed, match="not public") as caught:
            send(f"http://{host}:{receiver.port}/", allow_private=False)
        assert caught.value.permanent
    assert receiver.got == []


def test_a_name_is_looked_up_once(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is public when checked and private a moment later: the checked address is connected to."""
    asked = []
    lookup = socket.getaddrinfo

    def rebinding(host: str, port: int, *args: Any, **kinds: Any) -> object:
        if host != "rebinding.test":
            return lookup(host, port, *args, **kinds)
        asked.append(host)
        return lookup("127.0.0.1", port, *args, **kinds)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    # Stands for a public address, which a test cannot own: only the first lookup's answer passes.
    monkeypatch.setattr(addresses, "is_public", lambda address: address == "127.0.0.1" and len(asked) == 1)
    assert send(f"http://rebinding.test:{receiver.port}/", allow_private=False) == 200
    assert asked == ["rebinding.test"]
    assert receiver.got[0].headers["host"] == f"rebinding.test:{receiver.port}"


@contextlib.contextmanager
def talker(first: bytes, line: bytes) -> Iterator[int]:
    """A server that begins an answer and goes on a line at a time without coming to an end."""
    ending = threading.Event()

    def serve(server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection, _ = server.accept()
            with connection:
                connection.sendall(first)
                while not ending.wait(0.05):
                    connection.sendall(line)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        yield server.getsockname()[1]
        ending.set()
        thread.join()


@pytest.mark.parametrize(
    ("first", "line"),
    [(b"", b""), (b"HTTP/1.1 200 OK\r\n", b"X-Slow: 1\r\n")],
    ids=["silent", "a header at a time"],
)
def test_the_whole_try_is_bounded(first: bytes, line: bytes) -> None:
    """No single wait is long; only a bound on the whole ends it."""
    with talker(first, line) as port, pytest.raises(CallbackFailed, match=r"no answer within 0\.5 s"):
        send(f"http://127.0.0.1:{port}/", timeout_s=0.5)


def test_an_endless_body_is_left_alone() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(head)
                while True:
                    connection.sendall(b"x" * 65536)

        thread = threading.Thread(target=serve)
        thread.start()
        assert send(f"http://127.0.0.1:{server.getsockname()[1]}/") == 200
        thread.join(10)
        assert not thread.is_alive()


def test_nobody_there_and_no_such_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(CallbackFailed, match="ConnectionRefusedError") as caught:
        send(f"http://127.0.0.1:{port}/")
    assert not caught.value.permanent
    with pytest.raises(CallbackFailed, match="gaierror") as caught:
        send("http://no-such-host.invalid/")
    assert not caught.value.permanent


def test_plain_text_on_a_tls_port_is_an_error(receiver: Receiver) -> None:
    with pytest.raises(CallbackFailed, match="SSL"):
        send(f"https://127.0.0.1:{receiver.port}/")
