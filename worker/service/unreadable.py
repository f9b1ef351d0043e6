"""What may come over the broker and must not end a worker: entries that are no messages, and orders by remote control.

An entry that is no message is dropped and counted, where kombu would end the worker.

A wake-up may be lost: the plan in Redis knows what is due, and a reaper sends it again. So nothing of worth is dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import structlog
from celery.worker.control import Panel
from kombu.transport import TRANSPORT_ALIASES, redis

from config.log_events import LogEvent

_log = structlog.stdlib.get_logger(__name__)
_FOREIGN = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading an entry raises that is not JSON, or not of a message's form."""


class _Dropping:
    """A channel's reading, of which one entry cannot end the worker."""

    dropped = 0
    count: ClassVar[Callable[[], None]]

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]
        except _FOREIGN as error:
            _Dropping.dropped += 1
            _Dropping.count()
            _log.warning(LogEvent.MESSAGE_UNREADABLE, reason=repr(error)[:300], dropped=_Dropping.dropped)
            return True


class _RedisChannel(_Dropping, redis.Channel):  # type: ignore[misc]
    """The channel of Redis by one address."""


class _SentinelChannel(_Dropping, redis.SentinelChannel):  # type: ignore[misc]
    """The channel of Redis behind Sentinel."""


class Transport(redis.Transport):  # type: ignore[misc]
    """Redis by one address."""

    Channel = _RedisChannel


class SentinelTransport(redis.SentinelTransport):  # type: ignore[misc]
    """Redis behind Sentinel."""

    Channel = _SentinelChannel


def obey_nobody() -> None:
    """Take away the remote commands that change a worker: whoever may publish could end all with one message.

    Questions (``ping``, ``stats``, ``active``) stay, for Flower. A worker stops by a signal, a job by its own state.
    """
    for name in [name for name, info in Panel.meta.items() if info.type == "control"]:
        Panel.data.pop(name, None)


def drop_unreadable(count: Callable[[], None]) -> None:
    """Have this process's brokers drop what is no message, and ``count`` it. Before the first connection."""
    _Dropping.count = staticmethod(count)
    TRANSPORT_ALIASES.update(dict.fromkeys(("redis", "rediss"), f"{__name__}:Transport"))
    TRANSPORT_ALIASES["sentinel"] = f"{__name__}:SentinelTransport"
