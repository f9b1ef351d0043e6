"""The client: what producers, operators and the command line use. It goes on in ``store`` and ``messages``."""

from __future__ import annotations

import builtins
import getpass
import itertools
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal, Self

from pydantic import ValidationError

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.events import Event
from api_client.contract.fleet import Change, Fairness, HealthInfo, LabelLimit, Pause, QueueInfo, WorkerInfo
from api_client.contract.job import Artifact, Job, JobState, StageName, StateName
from api_client.contract.job_ids import find_id
from api_client.contract.recommend import MeasuredType
from api_client.contract.request import PackagingRequest, request_error
from api_client.contract.rules import resolve_request
from api_client.contract.task import RegisteredTask, TaskScores, TrainingTask
from api_client.contract.templates import BUILTIN_TEMPLATES, Template
from api_client.ledger import durability
from api_client.ledger.address import find_redis_url, masked_url
from api_client.ledger.asking import QuestionKind, ask, no_worker
from api_client.ledger.confirming import SubmitWait, find_submit_wait
from api_client.ledger.connecting import no_writes
from api_client.ledger.controls import Controls
from api_client.ledger.counts import Counts, read_counts
from api_client.ledger.figures import read_figures
from api_client.ledger.fleet import read_fleet
from api_client.ledger.keys import Keys
from api_client.ledger.messages import MessageSender
from api_client.ledger.queues import read_queues
from api_client.ledger.store import JobStore, stage_not_in_plan
from api_client.ledger.summaries import JobIndex, JobSummary
from api_client.ledger.tasks import Tasks
from api_client.ledger.writes import WriteRefusal, refusal_by

_BLOCK_MS = 1000
_READ_SETTINGS = (
    *("maxmemory-policy", "appendfsync", "save"),
    *("stop-writes-on-bgsave-error", "min-replicas-to-write"),
)
_PAGE_JOBS = 100
_STORED_TIMES = 3
"""How often a submit stores a job that a server, killed before it confirmed, came back without."""
_ENTRY_ID = re.compile(r"\d{1,19}(-\d{1,19})?|\$")
"""An entry of a Redis stream; ``$`` is the newest one there is."""


class PackagingClient:
    """Submits packaging requests and follows them.

    Args:
        redis_url: ``redis://``, ``rediss://`` or ``sentinel://host:port,host:port/service/db``. Not given:
            ``TRAINPACK_REDIS_URL``, else the running embedded stack, else ``redis://127.0.0.1:6379/0``.
        key_prefix: First part of every Redis key, as the workers have it.
        timeout_s: Longest wait for Redis in one call. A Redis that answered before is tried again within it.
        submit_wait: What a submit waits for before it returns: ``none``, ``disk`` (the server's append-only file),
            ``replica`` (one of them). Not given: ``TRAINPACK_SUBMIT_WAIT``, else ``none``.

    Raises:
        PackagingError: every method raises ``redis_unreachable`` when Redis does not answer.
    """

    def __init__(
        self,
        redis_url: str | None = None,
        *,
        key_prefix: str = "trainpack",
        timeout_s: float = 5.0,
        submit_wait: SubmitWait | str | None = None,
    ) -> None:
        self._url = find_redis_url(redis_url)
        self._keys = Keys(key_prefix)
        self._timeout_s = timeout_s
        self._store = JobStore(self._url, self._keys, timeout_s, find_submit_wait(submit_wait))
        self._controls = Controls(self._store, self._keys)
        self._tasks = Tasks(self._store, self._keys)
        self._index = JobIndex(self._store.redis, self._keys, self._store.call)
        self._sender = MessageSender(self._url, self._keys, timeout_s)

    def __repr__(self) -> str:
        return f"PackagingClient({masked_url(self._url)!r}, key_prefix={self._keys.prefix!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._sender.close()
        self._store.redis.close()

    def submit(self, request: PackagingRequest) -> Job:
        """Check a request and queue it. Safe to call again: with an idempotency key it makes one job at most.

        Raises:
            PackagingError: any code of class ``refuse`` that the rules of the contract give, ``idempotency_conflict``,
                ``callbacks_off``; where submits wait, ``submit_wait_unsupported`` with nothing stored, and
                ``submit_unconfirmed`` with the job stored.
        """
        templates = self.templates() if request.template not in BUILTIN_TEMPLATES else BUILTIN_TEMPLATES
        resolved, options = resolve_request(request, templates)
        if resolved.callback_url is not None:
            self._store.check_callback(resolved.callback_url)
        resolved = self._by_own_scores(resolved)
        for _ in range(_STORED_TIMES):
            outcome = self._store.submit(resolved, options, request)
            job_id = outcome if isinstance(outcome, str) else outcome.job_id
            if not isinstance(outcome, str):
                self._sender.send(outcome)
            if self._store.confirm(job_id):
                return self._store.get(job_id)
        raise PackagingError(
            ErrorCode.SUBMIT_UNCONFIRMED,
            f"Redis lost the job {_STORED_TIMES} times before it was confirmed; the last was {job_id}",
            fields={"job_id": job_id},
        )

    def _by_own_scores(self, request: PackagingRequest) -> PackagingRequest:
        """The request with the checkpoint that its task's registered scores call best, where it asks for the best."""
        if request.checkpoint != "best" or request.task is None:
            return request
        known = self._tasks.get(request.task.task_id)
        if known is None or known.best is None or not known.is_of(request.task.output_dir):
            return request
        return request.model_copy(update={"checkpoint": known.best})

    def register_task(
        self,
        task: TrainingTask,
        scores: TaskScores | None = None,
        *,
        metric: str | None = None,
        greater_is_better: bool = True,
        replace: bool = False,
    ) -> RegisteredTask:
        """Tell of a training task, so that the console offers it; again whenever its status or scores are others.

        Args:
            task: The task.
            scores: Scores of one's own evaluation, by checkpoint and metric; they win over the trainer's.
            metric: The metric that decides which checkpoint is best; not needed where there is one alone.
            greater_is_better: Whether more of it is better.
            replace: Take the place of a task of the same id that has other paths.

        Raises:
            PackagingError: ``task_conflict``, ``request_invalid``.
        """
        try:
            registered = RegisteredTask(
                task=task, scores=scores or {}, metric=metric, greater_is_better=greater_is_better,
                registered_at=datetime.now(UTC),
            )  # fmt: skip
        except ValidationError as error:
            raise request_error(error) from None
        self._tasks.register(registered, replace=replace)
        return registered

    def tasks(self, limit: int = 100) -> builtins.list[RegisteredTask]:
        """Registered training tasks, newest first."""
        return self._tasks.newest(limit)

    def task(self, task_id: str) -> RegisteredTask | None:
        """One registered training task; ``None`` where none of that id is."""
        return self._tasks.get(task_id)

    def get(self, job_id: str) -> Job:
        """Read a job.

        Raises:
            PackagingError: ``job_not_found``.
        """
        return self._store.get(job_id)

    def find(self, text: str) -> str:
        """The id that a text means: an id, a part that only one id has, ``last``, or ``last~1`` for the one before.

        Raises:
            PackagingError: ``job_not_found``; ``request_invalid`` where several ids have the part, naming some.
        """
        return find_id(text, lambda: self._store.iterate_ids(None, {}, None, None))

    def state(self, job_id: str) -> JobState:
        """A job's state alone, which costs less than the job.

        Raises:
            PackagingError: ``job_not_found``.
        """
        return self._store.state(job_id)

    def list(
        self,
        state: JobState | StateName | None = None,
        labels: dict[str, str] | None = None,
        since: datetime | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> builtins.list[Job]:
        """Jobs, newest first; those that only a newer version can read are left out.

        Args:
            state: Only jobs in this state.
            labels: Only jobs that have all of these labels.
            since: Only jobs submitted at or after this time.
            limit: At most so many.
            cursor: Id of the last job already seen; the list goes on after it.

        Raises:
            PackagingError: ``request_invalid`` for an unknown state or cursor.
        """
        ids = self._store.iterate_ids(_job_state(state), labels or {}, since, cursor)
        jobs: builtins.list[Job] = []
        while page := [*itertools.islice(ids, limit - len(jobs))]:
            jobs += self._store.read_many(page)
        return jobs

    def iterate(
        self,
        state: JobState | StateName | None = None,
        labels: dict[str, str] | None = None,
        since: datetime | None = None,
        cursor: str | None = None,
    ) -> Iterator[Job]:
        """Every job that matches, newest first, read page by page as it is asked for; arguments as :meth:`list`.

        A job that comes meanwhile is not among them, and one that ends meanwhile is there at most once.
        """
        while page := self.list(state, labels, since, _PAGE_JOBS, cursor):
            yield from page
            cursor = page[-1].id

    def read_many(self, job_ids: Sequence[str]) -> builtins.list[Job]:
        """Jobs by id, in that order; those that are gone, or that only a newer version can read, are left out."""
        return self._store.read_many(job_ids)

    def summaries(self) -> Sequence[JobSummary]:
        """Every job in short, newest first, at most a hundred thousand: what lists and counts of many jobs are made of.

        They are kept in this process and read again where a job changed, at most once a second.
        """
        return self._index.read()

    def events(
        self, job_id: str, follow: bool = False, after: str = "0", timeout_s: float | None = None
    ) -> Iterator[Event]:
        """Entries of a job's log, oldest first.

        Args:
            job_id: The job.
            follow: Go on with new entries until the job has ended.
            after: Id of the last entry already seen.
            timeout_s: Stop following after this time; ``None``: no bound.

        Raises:
            PackagingError: ``job_not_found``, ``request_invalid`` for an ``after`` that is no id of an entry.
        """
        if not _ENTRY_ID.fullmatch(after):
            raise PackagingError(
                ErrorCode.REQUEST_INVALID,
                f"after {after!r} is not the id of a log entry",
                remedy="Take the id of an entry, e.g. 1763900000000-0, or leave it out.",
                fields={"field": "after"},
            )
        self._store.state(job_id)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        return self._entries(job_id, follow, after, deadline)

    def _entries(self, job_id: str, follow: bool, after: str, deadline: float | None) -> Iterator[Event]:
        if after == "0" and (mark := self._store.truncation(job_id)):
            yield mark
        while True:
            entries = self._store.read_events(job_id, after, self._block_ms(deadline) if follow else None)
            yield from entries
            after = entries[-1].id if entries else after
            if not entries and not follow:
                return
            # The state is read after the entries, so that the last ones are still read in the rounds that follow.
            follow = follow and not self._finished(job_id) and not _passed(deadline)

    def _finished(self, job_id: str) -> bool:
        try:
            return self._store.state(job_id) in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)
        except PackagingError as error:
            if error.code is ErrorCode.JOB_NOT_FOUND:
                return True
            raise

    def _block_ms(self, deadline: float | None) -> int:
        longest = min(_BLOCK_MS, int(self._timeout_s * 500))
        if deadline is None:
            return max(longest, 1)
        return max(1, min(longest, int((deadline - time.monotonic()) * 1000)))

    def wait(self, job_id: str, timeout_s: float | None = None, *, timeout: float | None = None) -> Job:
        """Wait until a job has ended, well or not.

        Args:
            job_id: The job.
            timeout_s: Longest wait in seconds; ``None``: no bound.
            timeout: The name of before for the same.

        Raises:
            PackagingError: ``job_not_found``, ``wait_timeout``.
            TypeError: both names are given.
        """
        if timeout is not None:
            if timeout_s is not None:
                raise TypeError("timeout_s and timeout are the same")
            timeout_s = timeout
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        after = "$"
        while True:
            job = self._store.state(job_id)
            if job in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED):
                return self._store.get(job_id)
            if _passed(deadline):
                raise PackagingError(
                    ErrorCode.WAIT_TIMEOUT,
                    f"job {job_id} is still {job.value} after {timeout_s:g} s",
                    fields={"job_id": job_id, "state": job.value, "timeout_s": timeout_s},
                )
            entries = self._store.read_events(job_id, after, self._block_ms(deadline))
            after = entries[-1].id if entries else after

    def cancel(self, job_id: str) -> Job:
        """Ask for a job's end. A queued job ends at once, a running one within seconds.

        Raises:
            PackagingError: ``job_not_found``, ``job_finished``.
        """
        self._store.cancel(job_id)
        return self._store.get(job_id)

    def replay(self, job_id: str, from_stage: StageName | str | None = None) -> Job:
        """Run an ended job again, from its first stage that did not succeed or from a chosen one.

        Earlier stages' files are checked and made again only where missing or changed. Attempts go on counting and
        the log is kept. A job that succeeded is run again from the start.

        Raises:
            PackagingError: ``job_not_found``, ``job_running``, ``stage_not_in_plan``.
        """
        try:
            stage = StageName(from_stage) if from_stage else None
        except ValueError:
            raise stage_not_in_plan(job_id, str(from_stage), self.get(job_id).plan) from None
        self._sender.send(self._store.replay(job_id, stage))
        return self._store.get(job_id)

    def replay_failed(self, since: datetime, code: ErrorCode | str | None = None) -> builtins.list[Job]:
        """Replay every failed job submitted since a time; with ``code``, only those that failed with it."""
        replayed = []
        for job_id in [*self._store.iterate_ids(JobState.FAILED, {}, since, None)]:
            try:
                failure = self.get(job_id).failure
                if code is None or (failure is not None and failure.code == str(code)):
                    replayed.append(self.replay(job_id))
            except PackagingError as error:
                # Someone else replayed it, or it expired, between the list and here; or it is not ours to judge.
                if error.code not in (ErrorCode.JOB_RUNNING, ErrorCode.JOB_NOT_FOUND, ErrorCode.JOB_NEWER):
                    raise
        return replayed

    def outputs(self, job_id: str) -> tuple[Artifact, ...]:
        """The published files of a job; empty until it has succeeded.

        Raises:
            PackagingError: ``job_not_found``.
        """
        return self.get(job_id).outputs

    def figures(self, architecture: str) -> tuple[MeasuredType, ...]:
        """Figures of files of a GGUF architecture that earlier jobs measured, the newest first.

        Raises:
            PackagingError: ``redis_unreachable``.
        """
        return self._store.call(lambda: read_figures(self._store.redis, self._keys, architecture))

    def templates(self) -> dict[str, Template]:
        """The built-in templates and those that workers have published for this site."""
        return {**self._store.site_templates(), **BUILTIN_TEMPLATES}

    def workers(self) -> builtins.list[WorkerInfo]:
        """Workers that are alive."""
        redis, keys = self._store.redis, self._keys
        return [*read_fleet(redis, keys, self._store.call).workers]

    def queues(self) -> builtins.list[QueueInfo]:
        """Queues with what waits in them, for how long, and the workers that take from them."""
        fleet = read_fleet(self._store.redis, self._keys, self._store.call)
        return read_queues(self._store.redis, self._keys, fleet, self._store.call)

    def limits(self) -> builtins.list[LabelLimit]:
        """Caps by label that are in force."""
        return self._controls.limits()

    def set_limit(self, name: str, limit: int | Literal["none"] | None, *, by: str | None = None) -> None:
        """Set a cap for all workers at once, while they run.

        Args:
            name: A label (each of its values) or ``label=value``.
            limit: Stages at once; ``"none"``: no bound; ``None``: back to what workers were started with.
            by: Who does it, for the list of changes; this process's user where not given.

        Raises:
            PackagingError: ``request_invalid``.
        """
        self._controls.set_limit(name, limit, by or this_user())

    def fairness(self) -> Fairness:
        """The label by whose values new jobs are begun in turn, and their weights."""
        return self._controls.fairness()

    def set_fair_label(self, label: str | None, *, by: str | None = None) -> None:
        """Begin new jobs of equal priority in turn by the values of a label; ``None``: in the order they came.

        Raises:
            PackagingError: ``request_invalid``.
        """
        self._controls.set_fair_label(label, by or this_user())

    def set_weight(self, value: str, weight: int | None, *, by: str | None = None) -> None:
        """How many jobs of a value of that label are begun for one of weight 1; ``None``: 1.

        Raises:
            PackagingError: ``request_invalid``.
        """
        self._controls.set_weight(value, weight, by or this_user())

    def pauses(self) -> builtins.list[Pause]:
        """Queues and hosts that are paused."""
        return self._controls.pauses()

    def pause(self, name: str, *, by: str | None = None) -> None:
        """Begin nothing new from a queue or on a host: ``queue:NAME`` or ``host:NAME``. What runs goes on.

        Raises:
            PackagingError: ``request_invalid``.
        """
        self._controls.set_pause(name, True, by or this_user())

    def resume(self, name: str, *, by: str | None = None) -> None:
        """Let a paused queue or host go on.

        Raises:
            PackagingError: ``request_invalid``.
        """
        self._controls.set_pause(name, False, by or this_user())

    def changes(self, limit: int = 50) -> builtins.list[Change]:
        """Who changed which cap or pause, newest first."""
        return self._controls.changes(limit)

    def ask(self, kind: QuestionKind, parameters: Mapping[str, str], timeout_s: float) -> dict[str, Any]:
        """Ask a worker about files; ``Questions`` has a method for every kind.

        Raises:
            PackagingError: ``question_unanswered``, and what the worker found wrong.
        """
        if not self.workers():
            raise no_worker(kind)
        return ask(self._store, self._keys, kind=kind, parameters=parameters, timeout_s=timeout_s)

    def counts(self) -> Counts:
        """How many jobs of every state and template there are, and leases, delays and callbacks. Cheap."""
        return read_counts(self._store.redis, self._keys, self._store.call)

    def check_writes(self) -> None:
        """Ask Redis whether it answers and would take writes.

        Raises:
            PackagingError: ``redis_no_writes``.
        """
        reason = self.ping().refuses_writes
        if reason:
            refusal = WriteRefusal(reason)
            raise no_writes(self._url, refusal, refusal.fact)

    def ping(self) -> HealthInfo:
        """Ask Redis whether it answers, how it is set, and whether it keeps what it is given."""
        redis = self._store.redis

        def action() -> tuple[dict[str, Any], dict[str, str]]:
            return redis.info(), redis.config_get(*_READ_SETTINGS)

        self._store.call(redis.ping)
        started = time.monotonic()
        self._store.call(redis.ping)
        latency_ms = (time.monotonic() - started) * 1000
        info, config = self._store.call(action)
        refusal = refusal_by(info, config)
        return HealthInfo(
            version=str(info.get("valkey_version") or info.get("redis_version", "")),
            server=durability.server_name(info),
            refuses_writes=refusal.value if refusal else "",
            durability=durability.troubles(
                info,
                appendfsync=config.get("appendfsync", ""),
                save=config.get("save", ""),
                user=redis.connection_pool.connection_kwargs.get("username"),
                refusal=self._store.default_user_refusal(),
            ),
            eviction_policy=config.get("maxmemory-policy", ""),
            append_only=bool(int(info.get("aof_enabled", 0))),
            used_memory_bytes=int(info.get("used_memory", 0)),
            latency_ms=latency_ms,
        )


def this_user() -> str:
    """Who runs this process, as changes note it."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):  # A user id without a name.
        return f"{os.getuid()}@{socket.gethostname()}"


def _passed(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


def _job_state(state: JobState | StateName | None) -> JobState | None:
    try:
        return None if state is None else JobState(state)
    except ValueError:
        raise PackagingError(
            ErrorCode.REQUEST_INVALID,
            f"unknown state {state!r}; states are {', '.join(s.value for s in JobState)}",
            fields={"field": "state"},
        ) from None
