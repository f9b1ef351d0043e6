"""Messages between the worker and a stage's process: JSON lines over a socket pair. Reading never blocks.

From the child: ``log``, ``progress``, ``publishing``, ``record``, ``usage``, ``confirm``, and at the end
one of ``result``, ``error``, ``stopped``, ``lost``.
From the worker: ``stop``, ``confirmed``.
"""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

_CHUNK_BYTES = 1 << 16


class Channel:
    """One end. Sending is safe from several threads; reading belongs to one."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._lock = threading.Lock()
        self._partial = b""
        self.closed = False
        """Whether the other end is gone."""

    def fileno(self) -> int:
        """For ``multiprocessing.connection.wait`` and ``select``."""
        return self._socket.fileno()

    def send(self, kind: str, **values: Any) -> None:
        """Send one message. A vanished receiver is no error here: whoever reads sees ``closed``."""
        data = json.dumps({"type": kind, **values}, default=str).encode() + b"\n"
        with self._lock:
            try:
                self._socket.sendall(data)
            except OSError:
                self.closed = True

    def receive(self, block: bool = False) -> list[dict[str, Any]]:
        """The whole messages that have arrived; with ``block``, waits for some."""
        while not self.closed:
            try:
                data = self._socket.recv(_CHUNK_BYTES, 0 if block else socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self.closed = True
                break
            self._partial += data
            if block and b"\n" in data:
                break
        *lines, self._partial = self._partial.split(b"\n")
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        """Close this end."""
        self.closed = True
        self._socket.close()
