"""A way to Redis that a test spoils: an answer is lost with its connection, or nothing passes any more for a while."""

from __future__ import annotations

import re
import select
import socket
import threading
from urllib.parse import urlsplit

from tests.integration.harness import BOUND_S

_POLL_S = 0.05


class Wire:
    """Carries bytes to Redis and back, each connection in a thread of its own.

    Args:
        url: Redis.
        lose: Texts; the first command that has one is carried out, its answer is lost with the connection.
        cut: A pattern; the first command that has it does not pass, nor does anything else until :meth:`mend`.
    """

    def __init__(self, url: str, *, lose: list[bytes] | None = None, cut: bytes | None = None) -> None:
        self._upstream = ("127.0.0.1", int(urlsplit(url).port or 0))
        self._to_lose = list(lose or ())
        self._to_cut = re.compile(cut) if cut else None
        self.lost: list[bytes] = []
        self.is_cut = threading.Event()
        self._mended = threading.Event()
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._server.getsockname()[1]}/0"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def mend(self) -> None:
        """Let everything pass from now on."""
        self._to_cut = None
        self.is_cut.clear()
        self._mended.set()

    def close(self) -> None:
        """Cut every connection."""
        self._ending.set()
        self.mend()
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for thread in self._threads:
            thread.join(BOUND_S)
            assert not thread.is_alive()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._carry, args=(near,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _carry(self, near: socket.socket) -> None:
        with near, socket.create_connection(self._upstream) as far:
            losing = False
            while not self._ending.is_set():
                for ready in select.select([near, far], [], [], _POLL_S)[0]:
                    try:
                        data = ready.recv(1 << 16)
                    except OSError:
                        return
                    if not data or (ready is far and losing):
                        return
                    if ready is near and self._cuts(data):
                        return  # What was on its way when the line was cut never arrives.
                    losing = losing or (ready is near and self._loses(data))
                    (far if ready is near else near).sendall(data)

    def _cuts(self, data: bytes) -> bool:
        pattern = self._to_cut
        if pattern is not None and pattern.search(data):
            self.is_cut.set()
        if not self.is_cut.is_set():
            return False
        self._mended.wait()
        return True

    def _loses(self, data: bytes) -> bool:
        with self._lock:
            for text in self._to_lose:
                if text in data and b"EVALSHA" in data:
                    self._to_lose.remove(text)
                    self.lost.append(text)
                    return True
        return False
