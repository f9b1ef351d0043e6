"""The client's side of Redis: reading jobs, submitting, cancelling and replaying. ``client`` adds messages and waiting.

Every call retries while Redis is briefly away, so every script it runs may be run twice with the same outcome.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import ValidationError
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from api_client.contract.byte_bounds import REQUEST_BYTES
from api_client.contract.callbacks import private_host
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.events import Event, EventKind
from api_client.contract.job import SCHEMA_VERSION, Job, JobState, StageName
from api_client.contract.job_ids import new_job_id
from api_client.contract.plan import plan_stages
from api_client.contract.request import PackagingRequest
from api_client.contract.rules import ResolvedOptions
from api_client.contract.templates import Template
from api_client.ledger.confirming import Confirming, SubmitWait
from api_client.ledger.connecting import connect, denied, unreachable
from api_client.ledger.fleet import read_fleet
from api_client.ledger.keys import Keys
from api_client.ledger.messages import StageMessage
from api_client.ledger.outage import is_away, may_not, ride_out
from api_client.ledger.records import UNREADABLE, JobRecord, job_newer, read_event, read_job, record_invalid
from api_client.ledger.scripts import Script
from api_client.ledger.text_redis import StreamAnswer, StreamEntry
from api_client.ledger.waiting import Fleet, needs_fleet, waiting_for

_PAGE = 200
_FLEET_S = 1.0
"""For how long an answer about the workers is used again."""

T = TypeVar("T")


def request_digest(request: PackagingRequest) -> str:
    """Digest by which a repeated request is known; the key itself plays no part.

    Nor do defaults: a version with one field more must know the requests of the version before.
    """
    data = request.model_dump(mode="json", exclude={"idempotency_key"}, exclude_defaults=True)
    text = json.dumps(data, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class JobStore:
    """Jobs in Redis.

    Raises:
        PackagingError: every method raises ``redis_unreachable`` when Redis does not answer within the time-out.
    """

    def __init__(self, redis_url: str, keys: Keys, timeout_s: float, submit_wait: SubmitWait = SubmitWait.NONE) -> None:
        self._url = redis_url
        self._keys = keys
        self._timeout_s = timeout_s
        self._answered = False
        self._fleet: tuple[float, Fleet] | None = None
        self.redis = connect(redis_url, timeout_s)
        self._submit, self._cancel, self._replay = (
            Script(self.redis, keys.prefix, "api_client.ledger.lua", name) for name in ("submit", "cancel", "replay")
        )
        self._confirming = Confirming(self.redis, keys, url=redis_url, wait=submit_wait, timeout_s=timeout_s)

    def call(self, action: Callable[[], T]) -> T:
        """Run ``action``, again after a lost connection or while nothing can be written, within the time-out.

        A Redis that has never answered is not waited for.
        """

        def once() -> T:
            try:
                return action()
            except AuthenticationError as error:  # Nothing that waiting mends.
                raise unreachable(self._url, error) from error

        try:
            result = ride_out(once, self._timeout_s if self._answered else 0)
        except RedisError as error:
            if is_away(error):
                raise unreachable(self._url, error) from error
            if may_not(error):
                raise denied(self._url, self._keys.prefix, error) from error
            raise
        self._answered = True
        return result

    def submit(self, request: PackagingRequest, options: ResolvedOptions, sent: PackagingRequest) -> StageMessage | str:
        """Store a job.

        Args:
            request: The request with everything filled in.
            options: Its resolved options.
            sent: The request as the producer sent it; a repeated key is compared by it.

        Returns:
            The first stage's message, or the id of the job that the same key made before.

        Raises:
            PackagingError: ``idempotency_conflict``, ``callbacks_off``, ``request_invalid`` where it is too long;
                ``submit_wait_unsupported`` before anything is stored.
        """
        self.call(self._confirming.check)
        # What is not set is left out, so that a worker without a new field can run what does not use it.
        text = request.model_dump_json(exclude_unset=True)
        if len(text.encode()) > REQUEST_BYTES:
            raise request_too_long(len(text.encode()))
        arguments = {
            "nonce": secrets.token_hex(8),
            "digest": request_digest(sent),
            "idempotency_key": request.idempotency_key or "",
            "schema_version": str(SCHEMA_VERSION),
            "request": text,
            "options": options.model_dump_json(exclude_defaults=True),
            "plan": json.dumps([stage.value for stage in plan_stages(request, options)]),
            "labels": json.dumps(request.labels),
            "priority": str(request.priority),
            "template": request.template,
            "callback_url": request.callback_url or "",
        }
        while True:
            job_id = new_job_id()
            status, *rest = self.call(functools.partial(self._submit, id=job_id, **arguments))
            if status == "created":
                return StageMessage.from_answer(rest[0])
            if status == "known":
                return str(rest[0])
            if status == "no_callbacks":
                raise PackagingError(ErrorCode.CALLBACKS_OFF, "the workers have no secret to sign callbacks with")
            if status == "conflict":
                raise PackagingError(
                    ErrorCode.IDEMPOTENCY_CONFLICT,
                    f"idempotency key {request.idempotency_key!r} belongs to job {rest[0]}, which has another request",
                    fields={"idempotency_key": request.idempotency_key, "job_id": rest[0]},
                )

    def confirm(self, job_id: str) -> bool:
        """Wait for what submits wait for; ``False`` where the server has lost the job meanwhile.

        Raises:
            PackagingError: ``submit_unconfirmed``.
        """
        return self._confirming.confirm(job_id, self.call)

    def check_callback(self, url: str) -> None:
        """Refuse an address that the workers are not allowed to deliver to, as far as it can be told by itself.

        Raises:
            PackagingError: ``request_invalid``.
        """
        host = private_host(url)
        told = self.call(lambda: self.redis.hgetall(self._keys.named("config"))) if host else {}
        # without a secret nothing is delivered anywhere, which the script that stores the job says
        if told.get("callbacks") != "0" and told.get("callbacks_private") == "0":
            raise PackagingError(
                ErrorCode.REQUEST_INVALID,
                f"callback_url: {host} is not public, and the workers deliver to public addresses only",
                remedy="Give a public address, or set TRAINPACK_CALLBACK_ALLOW_PRIVATE=true on every worker.",
                fields={"field": "callback_url", "host": host},
            )

    def get(self, job_id: str) -> Job:
        """Read one job.

        Raises:
            PackagingError: ``job_not_found``, ``job_newer``, ``record_invalid``.
        """
        records = self._read_records([job_id])
        if not records:
            raise job_not_found(job_id)
        return self._with_reason(read_job(records[0]), records[0])

    def read_many(self, job_ids: Sequence[str]) -> list[Job]:
        """Read jobs in one round trip; those that no longer exist, or that this version cannot read, are left out."""
        jobs = []
        for record in self._read_records(job_ids):
            try:
                jobs.append(self._with_reason(read_job(record), record))
            except PackagingError as error:
                if error.code not in (ErrorCode.JOB_NEWER, ErrorCode.RECORD_INVALID):
                    raise
        return jobs

    def _with_reason(self, job: Job, record: JobRecord) -> Job:
        """The job, with why it waits where it does."""
        try:
            reason = waiting_for(job, record, self.fleet() if needs_fleet(job) else None)
        except UNREADABLE as error:
            raise record_invalid(record.id, error) from error
        return job if reason is None else job.model_copy(update={"waiting_for": reason.told()})

    def fleet(self) -> Fleet:
        """Workers and pauses, read at most once a second."""
        known = self._fleet
        if known is None or time.monotonic() - known[0] > _FLEET_S:
            known = self._fleet = (time.monotonic(), read_fleet(self.redis, self._keys, self.call))
        return known[1]

    def _read_records(self, job_ids: Sequence[str]) -> list[JobRecord]:
        def action() -> list[Any]:
            pipe = self.redis.pipeline(transaction=False)
            for job_id in job_ids:
                pipe.hgetall(self._keys.job(job_id))
                pipe.hgetall(self._keys.stages(job_id))
                pipe.lrange(self._keys.attempts(job_id), 0, -1)
            return pipe.execute()

        answers = self.call(action) if job_ids else []
        triples = zip(answers[::3], answers[1::3], answers[2::3], strict=True)
        return [JobRecord(job, stages, attempts) for job, stages, attempts in triples if job and stages]

    def state(self, job_id: str) -> JobState:
        """State of a job, cheaply.

        Raises:
            PackagingError: ``job_not_found``, ``job_newer``.
        """
        state, version = self.call(lambda: self.redis.hmget(self._keys.job(job_id), ("state", "schema_version")))
        if state is None:
            raise job_not_found(job_id)
        try:
            return JobState(state)
        except ValueError:
            raise job_newer(job_id, int(version or 1)) from None

    def iterate_ids(
        self, state: JobState | None, labels: dict[str, str], since: datetime | None, cursor: str | None
    ) -> Iterator[str]:
        """Ids, newest first, of jobs that have the state and all labels; ``cursor`` is the last id already seen."""
        indexes = [self._keys.label_index(key, value) for key, value in labels.items()]
        if state is not None:
            indexes.append(self._keys.state_index(state.value))
        walked, *others = indexes or [self._keys.named("jobs")]
        oldest = "-inf" if since is None else str(int(since.timestamp() * 1000))
        newest = "+inf" if cursor is None else str(self._created_ms(cursor))
        offset = 0
        while True:
            page = self.call(functools.partial(self._page, walked, newest, oldest, offset))
            offset += len(page)
            kept = [job_id for job_id in page if cursor is None or self._after_cursor(job_id, cursor, newest)]
            yield from self._in_all(kept, others)
            if len(page) < _PAGE:
                return

    def _page(self, index: str, newest: str, oldest: str, offset: int) -> list[str]:
        return self.redis.zrange(index, newest, oldest, desc=True, byscore=True, offset=offset, num=_PAGE)

    def _after_cursor(self, job_id: str, cursor: str, newest: str) -> bool:
        if job_id < cursor:
            return True
        return job_id != cursor and str(self._created_ms(job_id)) != newest

    def _in_all(self, job_ids: list[str], indexes: list[str]) -> list[str]:
        for index in indexes if job_ids else []:
            scores = self.call(functools.partial(self.redis.zmscore, index, job_ids))
            job_ids = [job_id for job_id, score in zip(job_ids, scores, strict=True) if score is not None]
            if not job_ids:
                break
        return job_ids

    def _created_ms(self, job_id: str) -> int:
        score = self.call(lambda: self.redis.zscore(self._keys.named("jobs"), job_id))
        if score is not None:
            return int(score)
        try:
            stamp = datetime.strptime(job_id[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
        except ValueError:
            raise PackagingError(
                ErrorCode.REQUEST_INVALID, f"cursor {job_id!r} is not a job id", fields={"field": "cursor"}
            ) from None
        return int(stamp.timestamp() * 1000) + 999

    def cancel(self, job_id: str) -> None:
        """Ask for a job's end.

        Raises:
            PackagingError: ``job_not_found``, ``job_finished``.
        """
        nonce = secrets.token_hex(8)
        status, *rest = self.call(lambda: self._cancel(id=job_id, nonce=nonce))
        if status == "missing":
            raise job_not_found(job_id)
        if status == "finished":
            raise PackagingError(
                ErrorCode.JOB_FINISHED, f"job {job_id} is {rest[0]}", fields={"job_id": job_id, "state": rest[0]}
            )

    def replay(self, job_id: str, from_stage: StageName | None) -> StageMessage:
        """Open a finished job again.

        Raises:
            PackagingError: ``job_not_found``, ``job_running``, ``stage_not_in_plan``.
        """
        nonce = secrets.token_hex(8)
        stage = from_stage.value if from_stage else ""
        status, *rest = self.call(lambda: self._replay(id=job_id, from_stage=stage, nonce=nonce))
        if status == "missing":
            raise job_not_found(job_id)
        if status == "running":
            raise PackagingError(
                ErrorCode.JOB_RUNNING, f"job {job_id} is {rest[0]}", fields={"job_id": job_id, "state": rest[0]}
            )
        if status == "no_stage":
            raise stage_not_in_plan(job_id, stage, self.get(job_id).plan)
        return StageMessage.from_answer(rest[0])

    def read_events(self, job_id: str, after: str, block_ms: int | None) -> list[Event]:
        """Entries after ``after``; waits for the first up to ``block_ms`` (``None``: not at all)."""
        key = self._keys.events(job_id)
        answer = self.call(lambda: self.redis.xread({key: after}, count=500, block=block_ms))
        return [read_event(entry_id, fields["event"]) for entry_id, fields in _entries(answer)]

    def truncation(self, job_id: str) -> Event | None:
        """The mark that stands for older entries which were dropped from a long log, if any were."""
        key = self._keys.events(job_id)
        if not self.call(lambda: self.redis.exists(key)):
            return None
        info = self.call(lambda: self.redis.xinfo_stream(key))
        dropped = int(info.get("entries-added", info["length"])) - int(info["length"])
        first = info.get("first-entry")
        if dropped <= 0 or not first:
            return None
        oldest = read_event(first[0], first[1]["event"])
        return Event(
            id=first[0],
            time=oldest.time,
            job_id=job_id,
            level="warning",
            kind=EventKind.TRUNCATED,
            message=f"{dropped} older entries were dropped",
            fields={"dropped": dropped},
        )

    def default_user_refusal(self) -> str | None:
        """Why the server's user ``default`` may not write our keys; empty where it may, ``None`` where it won't say."""
        asked = ("ACL", "DRYRUN", "default", "SET", self._keys.named("clock"), "0")
        try:
            answer = str(self.call(lambda: self.redis.execute_command(*asked)))
        except ResponseError:  # An old server.
            return None
        except PackagingError as error:
            if error.code != ErrorCode.REDIS_DENIED:  # else a user without the right to ask
                raise
            return None
        return "" if answer == "OK" else answer

    def site_templates(self) -> dict[str, Template]:
        """Templates that workers have published, less those of which only a newer version knows what they mean."""
        stored = self.call(lambda: self.redis.hgetall(self._keys.named("templates")))
        templates = {}
        for name, text in sorted(stored.items()):
            with contextlib.suppress(ValidationError):
                templates[name] = Template.model_validate_json(text)
        return templates


def _entries(answer: StreamAnswer) -> Iterator[StreamEntry]:
    """Entries of all streams of an answer."""
    if isinstance(answer, Mapping):
        yield from (entry for nested in answer.values() for entries in nested for entry in entries)
    else:
        yield from (entry for _, entries in answer or () for entry in entries)


def job_not_found(job_id: str) -> PackagingError:
    """Error for an id that names no job."""
    return PackagingError(ErrorCode.JOB_NOT_FOUND, f"no job {job_id!r}", fields={"job_id": job_id})


def request_too_long(size_bytes: int) -> PackagingError:
    """Error for a request that would take too much of Redis."""
    return PackagingError(
        ErrorCode.REQUEST_INVALID,
        f"the request has {size_bytes} bytes; at most {REQUEST_BYTES} are stored",
        fields={"size_bytes": size_bytes, "max_bytes": REQUEST_BYTES},
    )


def stage_not_in_plan(job_id: str, stage: str, plan: Sequence[StageName]) -> PackagingError:
    """Error for a stage that a job's plan does not have."""
    names = [name.value for name in plan]
    return PackagingError(
        ErrorCode.STAGE_NOT_IN_PLAN,
        f"job {job_id} has no stage {stage!r}; its plan is {', '.join(names)}",
        fields={"job_id": job_id, "stage": stage, "plan": names},
    )
