"""What must not be left of jobs that have ended: no key once they expire, no half-written file, no scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from api_client import Job, JobState
from tests.integration.harness import Installation, eventually
from worker.service.state.transitions import Transitions

_MANY = 1000


def assert_no_file_is_left(service: Installation) -> None:
    """Nothing half-written lies beside the outputs of ended jobs, and the scratch of those that succeeded is gone."""
    for job in _ended(service):
        _assert_no_partial_file(job, service)


def assert_no_key_is_left(service: Installation) -> None:
    """Let every ended job expire, and look for its id in every key."""
    ids = {job.id for job in _ended(service)}
    for job_id in ids:
        service.redis.zadd(service.keys.named("expiry"), {job_id: 0})
    found = set(Transitions(service.redis, service.keys, 1.5).expire(_MANY))
    assert found >= ids, f"not expired: {ids - found}"
    left = traces(service, ids)
    assert not left, left


def _ended(service: Installation) -> list[Job]:
    return [job for job in service.client.list(limit=_MANY) if job.finished]


def _assert_no_partial_file(job: Job, service: Installation) -> None:
    output = Path(str(job.request.output_dir))
    eventually(lambda: not list(output.glob(".*.tmp")), f"no half-written file in {output}")
    if job.state is JobState.SUCCEEDED:
        eventually(lambda: not (output / f".trainpack-{job.id}").exists(), f"the scratch of {job.id} is gone")


def traces(service: Installation, ids: set[str]) -> list[str]:
    """Keys that still name one of the jobs.

    Not looked at, since the workers have been killed: messages and scratch lists, which are theirs to clean, and what
    they last said of themselves, which Redis forgets after a lease.
    """
    found = []
    skipped = (service.keys.broker_prefix, service.keys.scratch(""), service.keys.worker(""))
    for key in service.redis.scan_iter(f"{service.prefix}:*", count=_MANY):
        if key.startswith(skipped):
            continue
        text = key + _content(service.redis, key)
        found += [f"{key} names {job_id}" for job_id in ids if job_id in text]
    return found


def _content(redis: Any, key: str) -> str:
    readers = {
        "string": redis.get,
        "hash": redis.hgetall,
        "list": lambda name: redis.lrange(name, 0, -1),
        "set": redis.smembers,
        "zset": lambda name: redis.zrange(name, 0, -1),
        "stream": redis.xrange,
    }
    kind = redis.type(key)
    return str(readers[kind](key)) if kind in readers else ""
