"""How long and how many: deadlines for headers, bodies and unread answers, caps on connections, strict line ends.

Nobody has shown a token yet while a header comes in, so nothing here may cost much, and a connection that only waits
gives way to one that asks. What is refused here is answered in one line; the log has it at a bounded rate.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from api_client.console.foreign import take_strict_lines
from api_client.console.settings import ConsoleSettings

SPARE_DESCRIPTORS = 96
"""What a console needs beside its connections: for Redis, logs and libraries."""
_FEWEST = 8
_log = logging.getLogger(__name__)


@dataclass
class Connections:
    """All connections of one console.

    Attributes:
        most: How many may be open.
        most_each: How many of one address; proxies that are trusted stand for many.
        header_s: Longest time for a request's header.
        body_s: Longest time for its body.
        unread_s: Longest time in which a client takes nothing of an answer.
        proxies: Networks whose addresses are not counted one by one.
    """

    most: int
    most_each: int
    header_s: float
    body_s: float
    unread_s: float
    proxies: Sequence[Any] = ()
    by_address: Counter[str] = field(default_factory=Counter)
    waiting: dict[BoundedProtocol, None] = field(default_factory=dict)
    """Those that have sent no whole header yet, the oldest first."""
    open: int = 0

    @classmethod
    def of(cls, settings: ConsoleSettings) -> Connections:
        """As the settings say, and no more than the process may open."""
        room = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_DESCRIPTORS
        most = min(settings.max_connections, max(_FEWEST, room))
        proxies = [ip_network(text, strict=False) for text in settings.trusted_proxies if _is_network(text)]
        times = (settings.header_s, settings.body_s, settings.unread_s)
        return cls(most, settings.max_connections_each, *times, proxies)

    def admit(self, address: str) -> bool:
        """Whether one more may be open; where all places are taken, one that only waits gives its place up."""
        if self.by_address[address] >= self.most_each and not self._is_proxy(address):
            _log.warning("%d connections of one address are open, one more was refused: %s", self.most_each, address)
            return False
        if self.open < self.most:
            return True
        oldest = next(iter(self.waiting), None)
        fate = "one more was refused" if oldest is None else "one that waits was closed"
        _log.warning("all %d connections are taken; %s", self.most, fate)
        if oldest is None:
            return False
        oldest.give_way()
        return True

    def _is_proxy(self, address: str) -> bool:
        try:
            ip = ip_address(address)
        except ValueError:
            return False
        return any(ip in network for network in self.proxies)


def _is_network(text: str) -> bool:
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return True


class BoundedProtocol(H11Protocol):
    """One connection. :func:`bounded` gives it its bounds."""

    bounds: Connections

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        take_strict_lines(self.conn)
        self._address: str | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._awaited = ""
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Admit it, or close it without a word."""
        peer = transport.get_extra_info("peername")
        address = str(peer[0]) if peer else ""
        if not self.bounds.admit(address):
            transport.abort()
        super().connection_made(transport)
        self._address = address
        self.bounds.open += 1
        self.bounds.by_address[address] += 1
        self._await("header", self.bounds.header_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Free its place."""
        super().connection_lost(exc)
        self.resume_writing()
        self._await("", 0)
        self.bounds.waiting.pop(self, None)
        self._leave()

    def data_received(self, data: bytes) -> None:
        """Hand it on, and see what is awaited now."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        state = self.conn.their_state
        if state is h11.IDLE:
            self._await("header", self.bounds.header_s)
        elif state is h11.SEND_BODY:
            self._await("body", self.bounds.body_s)
        else:
            self._await("", 0)

    def pause_writing(self) -> None:
        """The client reads more slowly than it is answered: it has a while to go on, or its place goes to others."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self.bounds.unread_s, self._too_slow)

    def resume_writing(self) -> None:
        """It has read on."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def on_response_complete(self) -> None:
        """The next header has the keep-alive time to begin, and then its own."""
        super().on_response_complete()
        if not self.transport.is_closing() and self.conn.their_state is h11.IDLE:
            self.bounds.waiting[self] = None

    def give_way(self) -> None:
        """Close a connection that only waits."""
        self.bounds.waiting.pop(self, None)
        self.transport.abort()
        self._leave()

    def _leave(self) -> None:
        """Give the place up at once; the loop tells of the end later."""
        if self._address is not None:
            self.bounds.open -= 1
            self.bounds.by_address[self._address] -= 1
            if not self.bounds.by_address[self._address]:
                del self.bounds.by_address[self._address]
            self._address = None

    def _await(self, what: str, longest_s: float) -> None:
        """Set the deadline for what comes next; that of a part under way stands."""
        if what == "header":
            self.bounds.waiting.setdefault(self)
        else:
            self.bounds.waiting.pop(self, None)
        if what == self._awaited:
            return
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._awaited = what
        if what:
            self._deadline = self.loop.call_later(longest_s, self._too_late)

    def _too_slow(self) -> None:
        _log.warning("an answer that nobody read was given up")
        self.transport.abort()

    def _too_late(self) -> None:
        if self.transport.is_closing():
            return
        _log.warning("a %s did not arrive in time and was given up", self._awaited)
        if self.cycle is None or not self.cycle.response_started or self.cycle.response_complete:
            self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        self.transport.close()


def bounded(connections: Connections) -> type[BoundedProtocol]:
    """The protocol of one console's connections."""
    return type("BoundedProtocol", (BoundedProtocol,), {"bounds": connections})
