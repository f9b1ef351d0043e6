"""The worker's scripts as typed calls: each is one edge of the machine drawn in ``worker.service.state``.

Every call may be repeated after a lost answer. Errors of the Redis client pass through; ``api_client.ledger.outage``
decides how long to try.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from api_client.contract.byte_bounds import DETAIL_BYTES, FACTS_BYTES, FIELDS_BYTES, MESSAGE_BYTES, cut, cut_fields
from api_client.contract.errors import PackagingError
from api_client.contract.events import Event
from api_client.contract.job import SCHEMA_VERSION, Artifact, JobState, Progress, StageName
from api_client.contract.job_ids import is_job_id
from api_client.ledger.keys import Keys, split_member, stage_field
from api_client.ledger.messages import StageMessage
from api_client.ledger.records import JobRecord, record_invalid
from api_client.ledger.scripts import Script
from api_client.ledger.text_redis import TextRedis
from worker.service.state.decisions import Decision, Spent
from worker.service.state.seal import Seal
from worker.stages.context import StageResult

_SCRIPTS = (
    "begin",
    "renew",
    "relay",
    "complete",
    "end_attempt",
    "rewind",
    "due",
    "overdue",
    "strand",
    "expire",
    "set_clock",
    "forget_scratch",
    "read_job",
)
RECORD_BYTES = 32 * 2**20
"""Largest record of a job that is read; the bounds of what is written keep any far below it."""
_CLOCK_TOLERANCE_S = 1.0
_DIRECTORY_BYTES = 400
_LATEST_MS = 2**53

_HELD_BACK = {"capped": "held back by a label's cap", "paused": "its queue or host is paused"}

LeaseAnswer = Literal["ok", "cancel", "lost"]


@dataclass(frozen=True)
class Lease:
    """The right to write one stage's result: held by the newest attempt only."""

    job_id: str
    stage: StageName
    attempt: int
    token: str

    @property
    def arguments(self) -> dict[str, str]:
        """What every script needs to know of it."""
        return {"job_id": self.job_id, "stage": self.stage.value, "token": self.token}

    @property
    def task_id(self) -> str:
        """``job_id:stage:attempt``."""
        return f"{self.job_id}:{self.stage.value}:{self.attempt}"


@dataclass(frozen=True)
class Begun:
    """A lease was taken."""

    lease: Lease
    previous_host: str
    """Host that ran the job's stages before; empty before the first."""
    check_artifacts: bool
    """Whether digests of earlier stages' files are to be checked (after a replay)."""


@dataclass(frozen=True)
class Ignored:
    """The message was late, doubled or held back; nothing is to be done."""

    reason: str


@dataclass(frozen=True)
class Instead:
    """Another job's turn comes first: the caller begins that one."""

    message: StageMessage


@dataclass(frozen=True)
class Settled:
    """A result was recorded.

    Attributes:
        message: The next wake-up to send, if one is due now.
        finished: The job's final state, if it has ended.
    """

    message: StageMessage | None = None
    finished: JobState | None = None


@dataclass(frozen=True)
class RunningStage:
    """A running stage as a reaper sees it."""

    lease: Lease
    lease_until: str
    worker: str
    counts: Spent


@dataclass(frozen=True)
class Taker:
    """Who takes the lease of a stage.

    Attributes:
        worker: The worker.
        host: Its host.
        pin: Whether the job's later stages must run on this host, where its scratch is.
        chosen: Whether the worker was told that it is this stage's turn.
    """

    worker: str
    host: str
    pin: bool
    chosen: bool = False


class Transitions:
    """All scripts of the worker's side, on one connection pool."""

    def __init__(self, redis: TextRedis, keys: Keys, lease_s: float, seal: Seal | None = None) -> None:
        self._redis = redis
        self._seal = seal or Seal(None)
        self._keys = keys
        self._lease_ms = int(lease_s * 1000)
        self._run = {name: Script(redis, keys.prefix, "worker.service.state.lua", name) for name in _SCRIPTS}

    def begin(
        self,
        job_id: str,
        stage: StageName,
        attempt: int,
        *,
        taker: Taker,
        limits: Mapping[str, int],
        token: str | None = None,
    ) -> Begun | Ignored | Instead:
        """Take the lease of a queued stage. With a :func:`new_token` of the caller's it may be repeated."""
        token = token or new_token(attempt)
        status, *rest = self._run["begin"](
            job_id=job_id,
            stage=stage.value,
            attempt=attempt,
            token=token,
            worker=taker.worker,
            host=taker.host,
            pin=taker.pin,
            chosen=taker.chosen,
            limits=dict(limits),
            lease_ms=self._lease_ms,
            schema_version=SCHEMA_VERSION,
        )
        if status == "begun":
            return Begun(Lease(job_id, stage, attempt, token), rest[0], rest[1] == "1")
        if status == "instead":
            return Instead(StageMessage.from_answer(rest[0]))
        return Ignored(rest[0] if rest else _HELD_BACK[status])

    def read_job(self, job_id: str) -> JobRecord | None:
        """A job's record; ``None`` when it is gone.

        A script counts before it answers, for a worker acts on what it reads and a forger may have filled the record.
        Clients read the same three keys in one pipeline (``api_client.ledger.store``): a Redis user that only looks on
        may run no script. Both make a :class:`JobRecord`, and what it means is read in one place.

        Raises:
            PackagingError: ``record_invalid`` where it is larger than any that the service writes.
        """
        status, *rest = self._run["read_job"](job_id=job_id, max_bytes=RECORD_BYTES)
        if status == "missing":
            return None
        if status == "large":
            raise record_invalid(job_id, ValueError(f"{rest[0]} bytes, at most {RECORD_BYTES} are read"))
        job, stages, attempts = rest
        return JobRecord(_pairs(job), _pairs(stages), tuple(attempts))

    def renew(self, lease: Lease) -> LeaseAnswer:
        """Renew a lease."""
        answer: LeaseAnswer = self._run["renew"](**lease.arguments, lease_ms=self._lease_ms)[0]
        return answer

    def relay(
        self,
        lease: Lease,
        events: Sequence[tuple[float, Event]],
        progress: Progress | None,
        publishing: str | None = None,
    ) -> bool:
        """Write log entries and progress; ``False`` when the lease is lost.

        ``publishing`` is the directory that another job publishes into while this one waits; empty once it is free.

        Entries come with their age in seconds: the server counts their times back from its own, so that the clock of a
        worker plays no part in the order of a log.
        """
        texts = [(int(age_s * 1000), event_text(event)) for age_s, event in events]
        short = progress and progress.model_copy(update={"detail": cut(progress.detail, DETAIL_BYTES)})
        progress_text = short.model_dump_json() if short else ""
        waits = {} if publishing is None else {"publishing": cut(publishing, _DIRECTORY_BYTES)}
        answer = self._run["relay"](**lease.arguments, events=texts, progress=progress_text, **waits)
        return bool(answer[0] == "ok")

    def complete(
        self, lease: Lease, result: StageResult, message: str, job: Mapping[str, str] = MappingProxyType({})
    ) -> Settled | None:
        """Record a success, sealed for the job's hash as it was read; ``None`` when the lease is lost."""
        artifacts = json.dumps([_artifact_record(artifact) for artifact in result.artifacts])
        facts = json.dumps(cut_fields(result.stored_facts(), FACTS_BYTES))
        seal = self._seal.make(lease.job_id, lease.stage, job, artifacts=artifacts, facts=facts)
        answer = self._run["complete"](**lease.arguments, artifacts=artifacts, facts=facts, seal=seal, message=message)
        return _settled(answer)

    def end_attempt(self, lease: Lease, decision: Decision, lease_until: str = "") -> Settled | None:
        """Record an attempt that did not succeed; ``None`` when the lease is lost (or moved on, for a reaper)."""
        answer = self._run["end_attempt"](
            **lease.arguments,
            outcome=decision.outcome.value,
            failure=_failure_text(decision.error, lease.stage),
            next=decision.next,
            delay_ms=int(decision.delay_s * 1000),
            retries=str(decision.counts.retries),
            crashes=str(decision.counts.crashes),
            level="error" if decision.next == "fail" else "warning",
            message=cut(decision.message, MESSAGE_BYTES),
            lease_until=lease_until,
        )
        return _settled(answer)

    def rewind(self, lease: Lease, reset: Sequence[StageName], message: str) -> Settled | None:
        """Give the stage back and have earlier ones run again; ``None`` when the lease is lost."""
        names = [stage.value for stage in reset]
        said = cut(message, MESSAGE_BYTES)
        return _settled(self._run["rewind"](**lease.arguments, reset=names, message=said))

    def due(self, limit: int = 100) -> list[StageMessage]:
        """Messages of stages whose delay is over; the caller must send them."""
        return [StageMessage.from_answer(answer) for answer in self._run["due"](limit=limit)]

    def overdue(self, age_s: float, limit: int = 500) -> list[StageMessage]:
        """Messages that were sent long ago; the caller sends those that are no longer in their queue."""
        answers = self._run["overdue"](age_ms=int(age_s * 1000), limit=limit)
        return [StageMessage.from_answer(answer) for answer in answers]

    def hosts(self) -> dict[str, str]:
        """Every host with the time of its last heartbeat; both as stored."""
        entries = self._redis.zrange(self._keys.named("hosts"), 0, -1, withscores=True)
        return _times(entries)

    def strand(self, host: str, seen: str) -> list[StageMessage] | None:
        """Move the queued stages of a silent host to queues that any worker serves; ``None`` if it was heard again."""
        status, *rest = self._run["strand"](host=host, seen=seen)
        return [StageMessage.from_answer(answer) for answer in rest[0]] if status == "gone" else None

    def set_clock(self) -> float:
        """Note the server's time; seconds that it went back since it was last noted, 0 as a rule."""
        return int(self._run["set_clock"](tolerance_ms=int(_CLOCK_TOLERANCE_S * 1000))[0]) / 1000

    def forget_scratch(self, job_id: str, host: str) -> None:
        """Drop the note of a job's scratch directory on a host, unless the job goes on."""
        self._run["forget_scratch"](job_id=job_id, host=host)

    def expire(self, limit: int = 500) -> list[str]:
        """Remove jobs whose time is over; their ids."""
        expired: list[str] = self._run["expire"](limit=limit)[0]
        return expired

    def running(self) -> dict[str, str]:
        """Every running stage (``ID|stage``) with the end of its lease; both as stored."""
        entries = self._redis.zrange(self._keys.named("leases"), 0, -1, withscores=True)
        return _times(entries)

    def running_stage(self, member: str, lease_until: str) -> RunningStage | None:
        """What a reaper needs to judge one running stage; ``None`` when it is gone."""
        job_id, stage = split_member(member)
        if not is_job_id(job_id):
            return None
        names = [stage_field(stage, field) for field in ("token", "attempt", "worker", "retries", "crashes")]
        token, attempt, worker, retries, crashes = self._redis.hmget(self._keys.stages(job_id), names)
        if not token or not self._redis.exists(self._keys.job(job_id)):
            return None
        lease = Lease(job_id, stage, int(attempt or 0), token)
        return RunningStage(lease, lease_until, worker or "?", Spent(int(retries or 0), int(crashes or 0)))

    def forget_running(self, member: str) -> None:
        """Drop an entry whose job no longer exists."""
        self._redis.zrem(self._keys.named("leases"), member)


def new_token(attempt: int) -> str:
    """A token that nobody else has."""
    return f"{attempt}-{secrets.token_hex(8)}"


def event_text(event: Event) -> str:
    """An event as the stream stores it, but for the time, which the script adds: no id, nothing unset."""
    data = event.model_dump(mode="json", exclude={"id", "time"}, exclude_none=True)
    data |= {"message": cut(event.message, MESSAGE_BYTES), "fields": cut_fields(data.get("fields", {}), FIELDS_BYTES)}
    return json.dumps(data, ensure_ascii=False)


def _failure_text(error: PackagingError | None, stage: StageName) -> str:
    return json.dumps(error.failure.at(stage.value).to_record(), ensure_ascii=False) if error else ""


def _artifact_record(artifact: Artifact) -> dict[str, Any]:
    record = artifact.model_dump(mode="json")
    return record | {"facts": cut_fields(record["facts"], FACTS_BYTES)}


def _times(entries: Sequence[tuple[str, float]]) -> dict[str, str]:
    """Members with their times as stored; an entry without a time of the clock is nobody's."""
    return {member: str(int(score)) for member, score in entries if 0 <= score < _LATEST_MS}


def _pairs(flat: list[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _settled(answer: list[Any]) -> Settled | None:
    status, *rest = answer
    if status == "lost":
        return None
    if status == "finished":
        return Settled(finished=JobState(rest[0]))
    return Settled(message=StageMessage.from_answer(rest[0]) if rest else None)
