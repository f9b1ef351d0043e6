"""Waiting, before a submit is answered, until the server has the job on its disk or on a replica.

A server answers a write from its memory. With ``appendfsync everysec`` a crash of its machine loses up to two seconds
of answered writes, a failover what the replica had not got.

``WAIT`` answers once a replica has everything that the connection wrote. ``WAITAOF`` should do so for the disk, but
under ``everysec`` many versions answer before they have synced (redis/redis#13793; Valkey 9.1.2 still does), and older
ones do not know it. So the disk is judged by what every version keeps to: where something is to be synced and a second
has passed since the last sync began, the server begins another before it answers anything, and ``INFO`` counts it until
it is done. A second after a write, no sync under way in two answers in a row means that the write is on the disk.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.ledger.address import masked_url
from api_client.ledger.durability import server_name
from api_client.ledger.keys import Keys
from api_client.ledger.scripts import Script
from api_client.ledger.text_redis import TextRedis

SETTING = "TRAINPACK_SUBMIT_WAIT"
_SYNC_S = 1.02
"""Within this time of a write the server begins a sync, where none runs."""
_PAUSE_S = 0.01


class SubmitWait(StrEnum):
    """What a submit waits for before it returns."""

    NONE = "none"
    """The server's answer, from its memory."""
    DISK = "disk"
    """The server's append-only file, on its disk."""
    REPLICA = "replica"
    """One replica's memory."""


_PLACES = {SubmitWait.DISK: "its append-only file", SubmitWait.REPLICA: "a replica"}


def find_submit_wait(given: SubmitWait | str | None = None) -> SubmitWait:
    """What is given, else ``TRAINPACK_SUBMIT_WAIT``, else ``none``.

    Raises:
        PackagingError: ``settings_invalid``.
    """
    text = given or os.environ.get(SETTING) or SubmitWait.NONE
    try:
        return SubmitWait(text)
    except ValueError:
        raise PackagingError(
            ErrorCode.SETTINGS_INVALID,
            f"{SETTING}: {text!r} is none of {', '.join(SubmitWait)}",
            fields={"setting": SETTING},
        ) from None


class Confirming:
    """Asks a server to keep a job, and whether it could.

    Args:
        redis: Connection pool to ask on.
        keys: Names of keys.
        url: Address, for messages.
        wait: What for.
        timeout_s: Longest time to wait; below the pool's own time-out.
    """

    def __init__(self, redis: TextRedis, keys: Keys, *, url: str, wait: SubmitWait, timeout_s: float) -> None:
        self._redis = redis
        self._touch = Script(redis, keys.prefix, "api_client.ledger.lua", "touch")
        self._url = url
        self._wait = wait
        self._timeout_ms = max(1, int(timeout_s * 800))
        self._always = False
        """Whether this server syncs its file before every answer, so that there is nothing to wait for."""
        self._able = wait is SubmitWait.NONE

    def check(self) -> None:
        """Ask, once, whether this server can confirm. Nothing is written.

        Raises:
            PackagingError: ``submit_wait_unsupported``.
            redis.exceptions.RedisError: Redis is away.
        """
        if self._able:
            return
        info = self._redis.info()
        reason = self._no_disk(info) if self._wait is SubmitWait.DISK else _no_replica(info)
        if reason:
            raise PackagingError(
                ErrorCode.SUBMIT_WAIT_UNSUPPORTED,
                f"{SETTING} is {self._wait}, and {server_name(info)} cannot confirm that {_PLACES[self._wait]} has the "
                f"job: {reason}",
                fields={"submit_wait": self._wait.value, "redis_url": masked_url(self._url)},
            )
        self._able = True

    def _no_disk(self, info: Mapping[str, Any]) -> str:
        """Why this server's disk cannot be waited for; empty where it can."""
        if not int(info.get("aof_enabled") or 0):
            return "appendonly is not yes"
        config = self._redis.config_get("appendfsync", "no-appendfsync-on-rewrite")
        fsync = config.get("appendfsync", "")
        if fsync not in ("everysec", "always"):
            return f"appendfsync is {fsync or 'not told to this user'}"
        if config.get("no-appendfsync-on-rewrite", "no") != "no":
            return "no-appendfsync-on-rewrite is yes"
        self._always = fsync == "always"
        return ""

    def confirm(self, job_id: str, call: Callable[[Callable[[], bool]], bool]) -> bool:
        """Wait until the server has the job where it is to be.

        Args:
            job_id: The job.
            call: Runs an action, again while Redis is away; each action waits anew.

        Returns:
            Whether the job is still there: a server that was killed meanwhile may have come back without it.

        Raises:
            PackagingError: ``submit_unconfirmed``.
        """
        if self._wait is SubmitWait.NONE or self._always:
            return True
        return call(lambda: self._on_disk(job_id) if self._wait is SubmitWait.DISK else self._on_replica(job_id))

    def _on_replica(self, job_id: str) -> bool:
        pipe = self._redis.pipeline(transaction=False)
        self._touch.into(pipe, id=job_id)
        pipe.execute_command("WAIT", 1, self._timeout_ms)
        (status, *_), replicas = pipe.execute()
        if status == "ok" and not int(replicas):
            raise self._unconfirmed(job_id)
        return bool(status == "ok")

    def _on_disk(self, job_id: str) -> bool:
        deadline = time.monotonic() + self._timeout_ms / 1000
        server = None
        while True:
            info = self._redis.info()
            if info["run_id"] != server:  # At first, and of a server that came back: it syncs for new writes only.
                if self._touch(id=job_id)[0] == "missing":
                    return False
                server, written_at, idle = info["run_id"], time.monotonic(), 0
                time.sleep(_SYNC_S)
                continue
            synced = time.monotonic() - written_at > _SYNC_S and not int(info["aof_pending_bio_fsync"])
            idle = idle + 1 if synced else 0
            if idle == 2 and info["aof_last_write_status"] == "ok":
                return True
            if time.monotonic() > deadline:
                raise self._unconfirmed(job_id)
            if not synced:
                time.sleep(_PAUSE_S)

    def _unconfirmed(self, job_id: str) -> PackagingError:
        return PackagingError(
            ErrorCode.SUBMIT_UNCONFIRMED,
            f"job {job_id} is stored, but {_PLACES[self._wait]} did not have it within {self._timeout_ms} ms",
            fields={"job_id": job_id, "submit_wait": self._wait.value},
        )


def _no_replica(info: Mapping[str, Any]) -> str:
    return "" if int(info.get("connected_slaves") or 0) else "no replica follows it"
