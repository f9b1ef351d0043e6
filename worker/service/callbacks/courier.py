"""Delivers callbacks. Every worker that has the secret looks for them; each announcement is taken by one at a time."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import structlog
from redis.exceptions import RedisError

from api_client.contract.callbacks import DELIVERY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER, shown_url, sign
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import Job
from api_client.ledger.keys import Keys
from api_client.ledger.outage import is_away
from api_client.ledger.text_redis import TextRedis
from config.log_events import LogEvent
from config.settings import Settings
from worker.service.callbacks.deliveries import Deliveries, Delivery, Dropped
from worker.service.callbacks.post import CallbackFailed, post
from worker.service.callbacks.summary import callback_body
from worker.service.loop import Loop, note_trouble
from worker.service.metrics.observer import Observer
from worker.service.state.decisions import RetryPolicy, backoff_s

_log = structlog.stdlib.get_logger(__name__)

_LONGEST_TICK_S = 1.0
_AT_ONCE = 4
"""So many receivers may hang before others wait."""
_LONGEST_DELAY_S = 3600.0
_CLAIM_BEYOND_TRY_S = 30.0
"""Time for looking the host up, which no time-out bounds, and for recording."""
_STOP_S = 1.0
_REASON = 300
"""Longest reason that a job's log is told, in characters."""


class Courier:
    """Delivers what is due; without a secret it delivers nothing and leaves it to workers that have one.

    Args:
        settings: This worker's.
        redis: A connection pool with a short time-out.
        read: Reads a job.
        observer: Is told what came of each try.
    """

    def __init__(self, settings: Settings, redis: TextRedis, read: Callable[[str], Job], observer: Observer) -> None:
        self._settings = settings
        self._read = read
        self._observer = observer
        self._secret = settings.callback_secret.get_secret_value() if settings.callback_secret else ""
        self._deliveries = Deliveries(
            redis, Keys(settings.key_prefix), settings.callback_timeout_s + _CLAIM_BEYOND_TRY_S
        )
        # The retry policy of stages, with the callbacks' own bounds.
        self._policy = RetryPolicy(settings.callback_tries, 1, settings.callback_retry_s, _LONGEST_DELAY_S)
        self._free = threading.Semaphore(_AT_ONCE)
        self._loop = Loop("courier", self._take_all, min(_LONGEST_TICK_S, settings.reap_s), LogEvent.COURIER_FAILED)

    def start(self) -> None:
        """Start delivering."""
        if self._secret:
            self._loop.start()

    def stop(self) -> None:
        """Stop. A try under way is not waited for: it is made again, by whoever comes next."""
        self._loop.stop(_STOP_S)

    def _take_all(self) -> None:
        while not self._loop.ending and self._take_one():
            pass

    def _take_one(self) -> bool:
        """Take an announcement that is due and start delivering it; ``False`` when there is none, or no room."""
        if not self._free.acquire(blocking=False):
            return False
        started = False
        try:
            taken = self._deliveries.take()
            if isinstance(taken, Delivery):
                # A daemon: a receiver that hangs does not hold up the worker's end.
                name = f"callback-{taken.id}"
                threading.Thread(target=self._deliver, args=(taken,), name=name, daemon=True).start()
                started = True
        finally:
            if not started:
                self._free.release()
        if isinstance(taken, Dropped):
            _log.warning(LogEvent.CALLBACK_DROPPED, record=taken.record, reason=taken.reason)
        return taken is not None

    def _deliver(self, delivery: Delivery) -> None:
        try:
            with structlog.contextvars.bound_contextvars(
                job_id=delivery.job_id, delivery=delivery.id, tries=delivery.tries
            ):
                self._try(delivery)
        except PackagingError as error:  # Redis stays away, or the job expired: the claim lapses.
            _log.debug(LogEvent.CALLBACK_FAILED, error=str(error))
        except RedisError as error:
            note_trouble(_log, error)
        except Exception:
            _log.exception(LogEvent.COURIER_FAILED)
        finally:
            self._free.release()

    def _try(self, delivery: Delivery) -> None:
        try:
            status = self._post(delivery, self._job(delivery.job_id))
        except CallbackFailed as error:
            self._failed(delivery, error)
        else:
            self._delivered(delivery, status)

    def _job(self, job_id: str) -> Job:
        """The job. A record that cannot be read spends a try: it is given up as a receiver that never answers."""
        try:
            return self._read(job_id)
        except Exception as error:
            elsewhere = isinstance(error, PackagingError) and error.code is not ErrorCode.RECORD_INVALID
            if elsewhere or (isinstance(error, RedisError) and is_away(error)):
                raise  # Redis stays away, the job has expired, or a newer worker reads it.
            raise CallbackFailed(f"the job cannot be read: {type(error).__name__}: {error}"[:_REASON]) from error

    def _post(self, delivery: Delivery, job: Job) -> int:
        body, timestamp = callback_body(job, delivery.id), int(time.time())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "trainpack",
            DELIVERY_HEADER: delivery.id,
            TIMESTAMP_HEADER: str(timestamp),
            SIGNATURE_HEADER: sign(self._secret, timestamp, body),
        }
        allow_private = self._settings.callback_allow_private
        return post(
            delivery.url, body, headers, allow_private=allow_private, timeout_s=self._settings.callback_timeout_s
        )

    def _delivered(self, delivery: Delivery, status: int) -> None:
        fields = _fields(delivery) | {"status": status}
        self._deliveries.settle(delivery, delay_s=None, level="info", message="Callback delivered", fields=fields)
        self._observer.called_back("delivered")
        _log.info(LogEvent.CALLBACK_DELIVERED, status=status)

    def _failed(self, delivery: Delivery, error: CallbackFailed) -> None:
        last = error.permanent or delivery.tries >= self._settings.callback_tries
        delay_s = None if last else backoff_s(delivery.tries - 1, self._policy, random.random())
        follows = "given up" if delay_s is None else f"next try in {delay_s:.1f} s"
        self._deliveries.settle(
            delivery,
            delay_s=delay_s,
            level="error" if last else "warning",
            message=f"Callback not delivered ({error}), {follows}",
            fields=_fields(delivery) | {"reason": str(error)},
        )
        self._observer.called_back("given_up" if last else "retried")
        _log.warning(LogEvent.CALLBACK_FAILED, error=str(error), next_s=delay_s)


def _fields(delivery: Delivery) -> dict[str, Any]:
    return {"delivery": delivery.id, "tries": delivery.tries, "url": shown_url(delivery.url)}
