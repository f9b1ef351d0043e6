"""Everything that workers read from Redis, as somebody else might have written it: drawn from the one map of keys.

A key of the map is taken in turn, so that a new row is included from its first day. What is done to it is drawn: a
value, member or field is put in place or added, or the key becomes one of another type.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from api_client import Job, PackagingError
from api_client.contract.job_ids import new_job_id
from api_client.ledger.keys import KEY_TYPES
from tests.integration.harness import Installation

_IN_OPEN, _IN_NONBLOCK = 0x20, 0o4000
HOST = os.uname().nodename
PLACES = {
    "STATE": "queued", "NAME": "merge_quantize", "K=V": "team=red", "KEY": "fuzzed", "QUEUE": "packaging.heavy",
    "HOST": HOST, "REASON": "label_limit", "ARCH": "llama", "QID": "0" * 32,
}  # fmt: skip
SCORES = (0.0, -1.0, 1.0, 1e15, -1e300, 1e300, float("inf"), float("-inf"))
OF_ANOTHER_TYPE: dict[str, Callable[[Any, str], object]] = {
    "string": lambda redis, key: redis.set(key, "somebody's"),
    "hash": lambda redis, key: redis.hset(key, "somebody", "here"),
    "list": lambda redis, key: redis.rpush(key, "somebody's"),
    "set": lambda redis, key: redis.sadd(key, "somebody's"),
    "zset": lambda redis, key: redis.zadd(key, {"somebody's": 0}),
    "stream": lambda redis, key: redis.xadd(key, {"somebody": "here"}),
}


class OpenedFiles:
    """Whether any file of a directory was opened, by whatever process (inotify)."""

    def __init__(self, directory: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.inotify_init1(_IN_NONBLOCK)
        assert self._libc.inotify_add_watch(self._descriptor, os.fsencode(directory), _IN_OPEN) >= 0

    def any(self) -> bool:
        try:
            return bool(os.read(self._descriptor, 4096))
        except BlockingIOError:
            return False

    def close(self) -> None:
        os.close(self._descriptor)


def hostile_values(secret: Path) -> tuple[bytes, ...]:
    """Paths, sizes, types, NULs, bytes of no encoding, bombs of JSON, and numbers that are none."""
    texts = (
        "", "\0", "a\0b", "\n\r", "..", "../../x", "/", "/etc/passwd", "/proc/self/environ", "/dev/zero", str(secret),
        f"{secret}/secret.gguf", f"{secret}|publish", "|", "a|b|c", "-1", "-9223372036854775809", "9" * 400, "1e999",
        "nan", "inf", "0x10", "1.5", "null", "true", "[]", "{}", '""', "[" * 50_000, '{"a":' * 5_000, "9" * 5_000,
        '{"id": null}', '["prepare"]', '{"path": "/etc/passwd"}', "é\u202e\U0001f600", "x" * 1_000_000,
        '{"schema_version": 99999999999999999999}', '[{"name": "../../x", "path": "/etc/passwd"}]',
    )  # fmt: skip
    return (*(text.encode() for text in texts), b"\xff\xfe", b"\xed\xa0\x80", bytes(range(256)))


@dataclass
class RecordFuzz:
    """One run.

    Args:
        service: With a worker.
        done: A job that has succeeded; what is changed are copies of it.
        secret: A directory that no worker may touch.
        seed: Of all that is drawn.
    """

    service: Installation
    done: Job
    secret: Path
    seed: int
    counts: Counter[str] = field(default_factory=Counter)
    last: str = ""

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        self.values = hostile_values(self.secret)

    def run(self, rounds: int) -> Iterator[str]:
        """Change every key of the map so often; what was done, each before the workers have had time for it."""
        for _ in range(rounds):
            for row in KEY_TYPES:
                job_id = self.copy()
                key = self._name(row, job_id)
                kinds = [kind for kind in OF_ANOTHER_TYPE if kind != KEY_TYPES[row]]
                if self.draw.random() < 0.4:
                    kind = self.draw.choice(kinds)
                    self.service.redis.delete(key)
                    OF_ANOTHER_TYPE[kind](self.service.redis, key)
                    self.last = f"{row} is a {kind}"
                else:
                    self.last = f"{row}: {self._change(KEY_TYPES[row], key)}"
                self.counts[row] += 1
                self.wake(job_id)
                yield self.last

    def goes_on(self, bound_s: float) -> bool:
        """Whether a job goes through in the end; what is of another type is taken away by the reaper, in a while."""
        until, tried = time.monotonic() + bound_s, list[Job]()
        while time.monotonic() < until:
            try:
                # a directory of its own, for a try that came too late may have published
                beside = {"output_dir": f"{self.done.request.output_dir}-after-{len(tried)}"}
                tried.append(self.service.client.submit(self.done.request.model_copy(update=beside)))
                self.service.wait(tried[-1], 10)
            except (PackagingError, RedisError, ValueError):
                time.sleep(0.3)
            if any(self._succeeded(job) for job in tried):
                return True
        return False

    def _succeeded(self, job: Job) -> bool:
        """Also of one that took longer than it was waited for, as on a busy machine."""
        try:
            return self.service.client.get(job.id).state == "succeeded"
        except (PackagingError, RedisError, ValueError):
            return False

    def copy(self) -> str:
        """A copy of the finished job under another id."""
        job_id, keys, redis = new_job_id(), self.service.keys, self.service.redis
        for make in (keys.job, keys.stages, keys.attempts, keys.events):
            if redis.exists(make(self.done.id)):
                redis.copy(make(self.done.id), make(job_id), replace=True)
                redis.persist(make(job_id))
        redis.hset(keys.job(job_id), "id", job_id)
        return job_id

    def wake(self, job_id: str) -> None:
        """Have workers look at it: by a replay as anyone may ask for it, or as a forger would."""
        try:
            self.service.client.replay(job_id, from_stage="publish")
        except (PackagingError, RedisError, ValueError):
            with contextlib.suppress(RedisError):
                self.service.redis.hset(self.service.keys.stages(job_id), "publish:state", "queued")
            with contextlib.suppress(RedisError):
                self.service.redis.zadd(self.service.keys.named("wake"), {f"{job_id}|publish": 0})

    def _name(self, row: str, job_id: str) -> str:
        name = row.replace("{ID}", f"{{{job_id}}}")
        for place, value in PLACES.items():
            name = name.replace(place, value)
        return self.service.keys.named(name)

    def _change(self, kind: str, key: str) -> str:
        redis, value = self.service.redis, self.draw.choice(self.values)
        if redis.type(key) not in ("none", kind):
            redis.delete(key)  # as an earlier change left it
        shown = f"{value[:30]!r} of {len(value)}"
        if kind == "string":
            redis.set(key, value)
        elif kind == "list":
            redis.lpush(key, value)
        elif kind == "set":
            redis.sadd(key, value)
        elif kind == "zset":
            score = self.draw.choice(SCORES)
            redis.zadd(key, {value: score})
            return f"{shown} at {score}"
        elif kind == "stream":
            redis.xadd(key, {self.draw.choice(("event", "answer", "other")): value})
        else:
            name = self.draw.choice([*sorted(redis.hkeys(key)), f"{self.done.id}", "somebody"])
            if self.draw.random() < 0.1:
                name = value[:1000]
            redis.hset(key, name, value)
            return f"{name!r} = {shown}"
        return shown
