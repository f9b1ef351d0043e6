"""What a worker says of itself in Redis, for as long as it lives."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

import structlog
from redis.exceptions import RedisError

from api_client.contract.fleet import WorkerInfo
from api_client.contract.job import SCHEMA_VERSION
from api_client.ledger.keys import Keys
from api_client.ledger.text_redis import TextRedis
from config.celery import worker_queues
from config.log_events import LogEvent
from config.settings import Settings
from worker.service.host_load import HostLoad
from worker.service.supervisor.supervisor import Identity

_log = structlog.stdlib.get_logger(__name__)


class Presence:
    """The record of one worker.

    Args:
        settings: The worker's.
        identity: Its name and host.
        redis: A connection pool with a short time-out.
        device: What its stages compute on.
    """

    def __init__(self, settings: Settings, identity: Identity, redis: TextRedis, device: str) -> None:
        self._settings = settings
        self._identity = identity
        self._redis = redis
        self._device = device
        self._keys = Keys(settings.key_prefix)
        self._started_at = datetime.now(UTC)
        self._host = HostLoad(settings.scratch_dir or settings.home)

    def beat(self, *, running: tuple[str, ...], draining: bool) -> None:
        """Write the record, which lives for a lease time.

        Raises:
            redis.exceptions.RedisError: it is not written.
        """
        name, host = self._identity.worker, self._identity.host
        seconds, micros = self._redis.time()
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        seen = self._host.figures()
        info = WorkerInfo(
            name=name,
            host=host,
            pid=os.getpid(),
            version=package_version(),
            device=self._device,
            slots=self._settings.slots,
            queues=worker_queues(self._settings),
            running=running,
            draining=draining,
            torch_loaded="torch" in sys.modules,
            started_at=self._started_at,
            last_heartbeat_at=datetime.fromtimestamp(now_ms / 1000, UTC),
            schema_version=SCHEMA_VERSION,
            label_limits=self._settings.label_limits,
            load=seen.load,
            disk_free_bytes=seen.disk_free_bytes,
            disk_total_bytes=seen.disk_total_bytes,
        )
        pipe = self._redis.pipeline(transaction=False)
        pipe.hset(self._keys.worker(name), "info", info.model_dump_json())
        pipe.pexpire(self._keys.worker(name), int(self._settings.lease_s * 1000))
        pipe.zadd(self._keys.named("workers"), {name: now_ms})
        pipe.zadd(self._keys.named("hosts"), {host: now_ms})
        pipe.execute()

    def forget(self) -> None:
        """Remove the record; where Redis is away it ends by itself."""
        try:
            self._redis.delete(self._keys.worker(self._identity.worker))
            self._redis.zrem(self._keys.named("workers"), self._identity.worker)
        except RedisError as error:
            _log.debug(LogEvent.CLEANING_FAILED, error=str(error))


def package_version() -> str:
    """Version of the installed distribution."""
    try:
        return version("trainpack")
    except PackageNotFoundError:
        return "0"
