"""One POST to a checked address: bounded in time as a whole, no redirects, no proxy, the answer's body left alone."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from urllib.parse import SplitResult, urlsplit

from worker.service.callbacks.addresses import AddressRefused, checked_addresses

_ANSWER_BYTES = 64 * 2**10
"""How much of an answer's body is read, out of politeness, before the connection is closed."""


class CallbackFailed(Exception):
    """A try that did not succeed.

    Args:
        reason: For people; holds nothing that the receiver sent.
        permanent: Whether another try would end the same way.
    """

    def __init__(self, reason: str, *, permanent: bool = False) -> None:
        super().__init__(reason)
        self.permanent = permanent


def post(url: str, body: bytes, headers: Mapping[str, str], *, allow_private: bool, timeout_s: float) -> int:
    """Send a callback.

    Returns:
        The status, 200 to 299.

    Raises:
        CallbackFailed: another status, an address that is not allowed, no connection, no answer in time.
    """
    deadline = time.monotonic() + timeout_s
    parts = urlsplit(url)
    try:
        with _connected(parts, allow_private, deadline) as connection:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("POST", target, body, dict(headers))
            answer = connection.getresponse()
            status = answer.status
            answer.read(_ANSWER_BYTES)
            if time.monotonic() >= deadline:  # A head that was cut off reads like one that ended.
                raise TimeoutError
    except AddressRefused as error:
        raise CallbackFailed(str(error), permanent=True) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        if time.monotonic() >= deadline:
            raise CallbackFailed(f"no answer within {timeout_s:g} s") from error
        raise CallbackFailed(f"{type(error).__name__}: {error}"[:300]) from error
    if 300 <= status < 400:
        raise CallbackFailed(f"answered {status}; redirects are not followed", permanent=True)
    if not 200 <= status < 300:
        raise CallbackFailed(f"answered {status}", permanent=status == http.HTTPStatus.GONE)
    return status


@contextlib.contextmanager
def _connected(parts: SplitResult, allow_private: bool, deadline: float) -> Iterator[http.client.HTTPConnection]:
    """A connection to a checked address, which is cut at the deadline however slowly the other side goes on."""
    host, secure = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    connection = (http.client.HTTPSConnection if secure else http.client.HTTPConnection)(host, port)
    plain = _open(checked_addresses(host, port, allow_private=allow_private), port, deadline)
    # A second handle on the connection, so that cutting it does not meet the first one half used.
    handle = socket.socket(plain.family, plain.type, fileno=os.dup(plain.fileno()))
    timer = threading.Timer(max(0.0, deadline - time.monotonic()), _cut, [handle])
    timer.daemon = True
    timer.start()
    try:
        connection.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=host) if secure else plain
        yield connection
    finally:
        timer.cancel()
        timer.join()
        connection.close()
        plain.close()
        handle.close()


def _open(addresses: list[str], port: int, deadline: float) -> socket.socket:
    failure = OSError("no address")
    for address in addresses:
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0:
            raise TimeoutError("no time left to connect")
        try:
            return socket.create_connection((address, port), timeout=remaining_s)
        except OSError as error:
            failure = error
    raise failure


def _cut(handle: socket.socket) -> None:
    with contextlib.suppress(OSError):
        handle.shutdown(socket.SHUT_RDWR)
