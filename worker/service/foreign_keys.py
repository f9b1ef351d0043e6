"""Keys that are ours by name and not by type: nothing of the service wrote them, and nothing of it can work with them.

What a key held before is gone when it is met as another type. Whoever can do that can remove it as well, so it is
removed, and the service goes on as it does after any loss of Redis.
"""

from __future__ import annotations

from collections.abc import Iterable

import structlog
from redis.exceptions import ResponseError

from api_client.ledger.keys import KEY_TYPES, Keys
from api_client.ledger.text_redis import TextRedis
from config.log_events import LogEvent
from worker.service.loop import Rarely

_log = structlog.stdlib.get_logger(__name__)

_PAGE = 1000
_EVERYWHERE_EVERY_S = 10.0
_SHOWN = 300
_FIXED = tuple(name for name in KEY_TYPES if name.islower())


def is_wrong_type(error: Exception) -> bool:
    """Whether Redis said that a key is of another type, to a command or within a script."""
    return isinstance(error, ResponseError) and "WRONGTYPE" in str(error)


class ForeignKeys:
    """Removes them.

    Args:
        redis: A connection pool with a short time-out.
        keys: Names of the service's keys.
    """

    def __init__(self, redis: TextRedis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._everywhere = Rarely(_EVERYWHERE_EVERY_S)

    def look(self) -> None:
        """Look at the keys without which nothing goes on.

        Raises:
            redis.exceptions.RedisError: Redis refuses or is away.
        """
        self._remove(map(self._keys.named, _FIXED))

    def look_everywhere(self) -> None:
        """Look at all keys, page by page; for who has met one, and not too often. Raises as :meth:`look`."""
        if not self._everywhere.due():
            return
        cursor = 0
        while True:
            cursor, names = self._redis.scan(cursor, match=f"{self._keys.prefix}:*", count=_PAGE)
            self._remove(name for name in names if not name.startswith(self._keys.broker_prefix))
            if not cursor:
                return

    def _remove(self, names: Iterable[str]) -> None:
        wanted = {name: kind for name in names if (kind := self._keys.type_of(name)) is not None}
        pipe = self._redis.pipeline(transaction=False)
        for name in wanted:
            pipe.type(name)
        for name, kind in zip(wanted, pipe.execute(), strict=True):
            if kind not in ("none", wanted[name]):
                _log.warning(LogEvent.KEY_FOREIGN, key=name[:_SHOWN], type=kind, expected=wanted[name])
                self._redis.delete(name)
