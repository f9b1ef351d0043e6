"""Messages: wake-ups that name a queued stage. The plan in Redis is the truth, so any of them may be lost or doubled.

Celery's message carries ``{"schema_version", "job_id", "stage", "attempt"}`` as JSON, the version being the job's; its
task id is ``job_id:stage:attempt``. A job's priority 9 is the most urgent; kombu's Redis transport serves 0 first, so
the message's priority is ``9 - priority``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from api_client.contract.job import SCHEMA_VERSION, StageName
from api_client.contract.stage_names import stage_named
from api_client.ledger.address import broker_address
from api_client.ledger.keys import Keys

if TYPE_CHECKING:
    from celery import Celery

    from api_client.ledger.text_redis import TextRedis

TASK_NAME = "trainpack.run_stage"
QUEUE_HEAVY = "packaging.heavy"
QUEUE_IO = "packaging.io"
HOST_QUEUE_PREFIX = "packaging.host."
PRIORITIES = tuple(range(10))
QUEUE_READ = 10_000
"""Messages of a queue that are read at most in one sweep."""
_PAGE = 500
_PRIORITY_SEPARATOR = "\x06\x16"


def host_queue(host: str) -> str:
    """Queue of the stages that need one host's scratch."""
    return HOST_QUEUE_PREFIX + host


@dataclass(frozen=True)
class StageMessage:
    """One wake-up: run this attempt of this stage."""

    job_id: str
    stage: StageName
    attempt: int
    queue: str
    priority: int
    schema_version: int = SCHEMA_VERSION
    """The job's, whoever sends the message: so a newer worker's message wakes an older one for an older job."""

    @classmethod
    def from_answer(cls, answer: list[str]) -> StageMessage:
        """Read a script's ``message_for``."""
        job_id, stage, attempt, queue, priority, version = answer
        return cls(job_id, stage_named(stage), int(attempt), queue, int(priority), int(version))

    @property
    def task_id(self) -> str:
        """Celery's id of the task."""
        return f"{self.job_id}:{self.stage.value}:{self.attempt}"

    @property
    def body(self) -> dict[str, Any]:
        """Keyword arguments of the task."""
        return {
            "schema_version": self.schema_version,
            "job_id": self.job_id,
            "stage": self.stage.value,
            "attempt": self.attempt,
        }


def transport_options(keys: Keys, timeout_s: float) -> dict[str, Any]:
    """Options of kombu's Redis transport that producers and workers must share."""
    return {
        "global_keyprefix": keys.broker_prefix,
        "priority_steps": list(PRIORITIES),
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
    }


def queue_keys(keys: Keys, queue: str) -> list[str]:
    """Redis lists that hold a queue's messages, the most urgent first."""
    names = (queue if step == 0 else f"{queue}{_PRIORITY_SEPARATOR}{step}" for step in PRIORITIES)
    return [keys.broker_prefix + name for name in names]


def missing_task_ids(redis: TextRedis, keys: Keys, queue: str, wanted: set[str]) -> set[str]:
    """Those of the ``wanted`` messages that wait no longer in a queue; one handed to a worker is not there either.

    A queue is read in pages from the end that is taken next, where the oldest messages are, and no further than needed.
    Of one longer than :data:`QUEUE_READ` the rest is taken for there: what is lost is found once the queue is shorter.
    """
    missing, left = set(wanted), QUEUE_READ
    for name in queue_keys(keys, queue):
        end = -1
        while missing:
            if left <= 0:
                return set()
            texts = redis.lrange(name, end - _PAGE + 1, end)
            missing -= {task_id for task_id in map(_task_id, texts) if task_id is not None}
            left -= len(texts)
            end -= _PAGE
            if len(texts) < _PAGE:
                break
    return missing


def _task_id(text: str) -> str | None:
    """Task id of a message as the broker stores it; ``None`` of something that is no such message."""
    try:
        return str(json.loads(text)["headers"]["id"])
    except (KeyError, TypeError, ValueError):
        return None


class MessageSender:
    """Sends messages for one installation. Thread-safe; connects on first use."""

    def __init__(self, redis_url: str, keys: Keys, timeout_s: float) -> None:
        self._redis_url = redis_url
        self._keys = keys
        self._timeout_s = timeout_s

    @cached_property
    def _app(self) -> Celery:
        from celery import Celery

        url, options = broker_address(self._redis_url)
        app = Celery("trainpack", set_as_current=False)
        app.conf.update(
            broker_url=url,
            broker_transport_options=transport_options(self._keys, self._timeout_s) | options,
            broker_connection_timeout=self._timeout_s,
            task_serializer="json",
            task_ignore_result=True,
            task_create_missing_queues=True,
        )
        return app

    def send(self, message: StageMessage) -> bool:
        """Send one message.

        Returns:
            Whether it went out. If not, nothing is lost: a worker sends it again when it counts as overdue.
        """
        from kombu.exceptions import OperationalError
        from redis.exceptions import RedisError

        try:
            self._app.send_task(
                TASK_NAME,
                kwargs=message.body,
                task_id=message.task_id,
                queue=message.queue,
                priority=9 - message.priority,
                ignore_result=True,
                retry=False,
            )
        except (OperationalError, RedisError, OSError):
            return False
        return True

    def close(self) -> None:
        """Close the broker connections."""
        if "_app" in self.__dict__:
            self._app.close()
