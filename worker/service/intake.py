"""From which queues this worker takes messages now: all of its own, but for those that are paused.

What is paused stands in Redis and is read with every heartbeat. The consumer belongs to Celery's loop, so it is told
there; a message that was on its way already is held back when its stage asks for its lease.
"""

from __future__ import annotations

import threading
from typing import Any

import structlog

from api_client.ledger.keys import Keys
from api_client.ledger.text_redis import TextRedis
from config.celery import worker_queues
from config.log_events import LogEvent
from config.settings import Settings

_log = structlog.stdlib.get_logger(__name__)


class Intake:
    """The queues of one worker.

    Args:
        settings: The worker's.
        redis: A connection pool with a short time-out.
    """

    def __init__(self, settings: Settings, redis: TextRedis) -> None:
        self._redis = redis
        self._key = Keys(settings.key_prefix).named("paused")
        self._host = settings.host_name
        self._queues = worker_queues(settings)
        self._consumer: Any = None
        self._closed: frozenset[str] = frozenset()
        self._lock = threading.Lock()

    def attach(self, consumer: Any) -> None:
        """Celery's consumer is ready. What was closed stays closed when it connects anew."""
        with self._lock:
            self._consumer = consumer

    def look(self) -> None:
        """Read what is paused, and take accordingly.

        Raises:
            redis.exceptions.RedisError: it is not read; nothing changes.
        """
        names = [f"host:{self._host}", *(f"queue:{queue}" for queue in self._queues)]
        host, *values = self._redis.hmget(self._key, names)
        paused = {
            queue for queue, entry in zip(self._queues, values, strict=True) if host is not None or entry is not None
        }
        with self._lock:
            consumer = self._consumer
            if consumer is None or paused == self._closed:
                return
            for queue in sorted(paused - self._closed):
                _log.info(LogEvent.QUEUE_PAUSED, queue=queue)
                consumer.call_soon(consumer.cancel_task_queue, queue)
            for queue in sorted(self._closed - paused):
                _log.info(LogEvent.QUEUE_RESUMED, queue=queue)
                consumer.call_soon(consumer.add_task_queue, queue)
            self._closed = frozenset(paused)
