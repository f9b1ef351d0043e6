"""Every job in short, kept in this process and read again where it changed: what lists of many jobs are made of.

A look costs a few reads of whole indexes, whatever happened before; a job's own hash is read once, and again when
its state or its end is another. What is read is input: texts are cut, and a record of another form is passed over.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from api_client.contract.errors import Failure, failure_of
from api_client.contract.job import JobState
from api_client.contract.job_search import SEARCHED_FIELDS, searched_texts
from api_client.ledger.keys import Keys
from api_client.ledger.records import UNREADABLE, load
from api_client.ledger.text_redis import TextRedis

MOST: Final = 100_000
"""Jobs that are kept, the newest; of more the oldest are left out."""
FRESH_S: Final = 1.0
"""For how long a look is used again while as many jobs are in each state."""
_BATCH: Final = 1000
_TEXT_CHARACTERS: Final = 4000
_FIELDS: Final = ("request", "labels", "error", "started_at", "finished_at")


@dataclass(frozen=True, slots=True)
class JobSummary:
    """One job in short.

    Attributes:
        id: Its id.
        state: Its state.
        created_ms: When it was submitted, ms of Unix time.
        started_ms: When it first began; ``None`` before.
        ended_ms: When it ended last; ``None`` while it has not.
        code: Code of what ended it, of a failed job; else empty.
        labels: Its labels.
        searched: The texts in which a search looks, case-folded, a line each.
    """

    id: str
    state: JobState
    created_ms: int
    started_ms: int | None
    ended_ms: int | None
    code: str
    labels: Mapping[str, str]
    searched: str


_Mark = tuple[JobState, int | None]


class JobIndex:
    """Keeps the summaries of one service. Thread-safe.

    Args:
        redis: A connection pool.
        keys: Names of keys.
        call: Runs an action through short outages.
        clock: For how long a look is fresh.
    """

    def __init__(
        self,
        redis: TextRedis,
        keys: Keys,
        call: Callable[[Callable[[], Any]], Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._call = call
        self._clock = clock
        self._lock = threading.Lock()
        self._looked_at = -FRESH_S
        self._counted: list[Any] = []
        self._marks: dict[str, _Mark] = {}
        self._known: dict[str, JobSummary] = {}
        self._sorted: tuple[JobSummary, ...] = ()

    def read(self) -> Sequence[JobSummary]:
        """All jobs, newest first; at most :data:`MOST`.

        Raises:
            PackagingError: ``redis_unreachable``.
        """
        with self._lock:
            counts = self._counts()
            if counts != self._counted or self._clock() - self._looked_at >= FRESH_S:
                self._look()
                self._counted, self._looked_at = counts, self._clock()
            return self._sorted

    def _counts(self) -> list[Any]:
        """How many jobs there are of each state, and the newest: whoever submitted or cancelled one sees it at once."""

        def action() -> list[Any]:
            pipe = self._redis.pipeline(transaction=False)
            pipe.zrange(self._keys.named("jobs"), -1, -1)
            for state in JobState:
                pipe.zcard(self._keys.state_index(state.value))
            return pipe.execute()

        counts: list[Any] = self._call(action)
        return counts

    def _look(self) -> None:
        created, marks = self._indexes()
        changed = [job_id for job_id, mark in marks.items() if self._marks.get(job_id) != mark]
        known = {job_id: summary for job_id, summary in self._known.items() if job_id in marks}
        for at in range(0, len(changed), _BATCH):
            batch = changed[at : at + _BATCH]
            for job_id, values in zip(batch, self._hashes(batch), strict=True):
                known.pop(job_id, None)
                with contextlib.suppress(*UNREADABLE):
                    known[job_id] = _summary(job_id, created[job_id], marks[job_id], values)
        self._marks, self._known = marks, known
        # ids begin with the time of their creation, so they part those of one millisecond the same way each time
        self._sorted = tuple(sorted(known.values(), key=lambda summary: (summary.created_ms, summary.id), reverse=True))

    def _indexes(self) -> tuple[dict[str, int], dict[str, _Mark]]:
        """When each job was created, and in what state it is and until when it is kept, which changes with its end."""

        def action() -> list[Any]:
            pipe = self._redis.pipeline(transaction=False)
            pipe.zrange(self._keys.named("jobs"), -MOST, -1, withscores=True)
            pipe.zrange(self._keys.named("expiry"), 0, -1, withscores=True)
            for state in JobState:
                pipe.zrange(self._keys.state_index(state.value), -MOST, -1)
            return pipe.execute()

        jobs, expiry, *states = self._call(action)
        created = {job_id: int(score) for job_id, score in jobs}
        kept_until = {job_id: int(score) for job_id, score in expiry}
        marks = {
            job_id: (state, kept_until.get(job_id))
            for state, ids in zip(JobState, states, strict=True)
            for job_id in ids
            if job_id in created
        }
        return created, marks

    def _hashes(self, job_ids: Sequence[str]) -> list[list[str | None]]:
        def action() -> list[Any]:
            pipe = self._redis.pipeline(transaction=False)
            for job_id in job_ids:
                pipe.hmget(self._keys.job(job_id), _FIELDS)
            return pipe.execute()

        answers: list[list[str | None]] = self._call(action)
        return answers


def _summary(job_id: str, created_ms: int, mark: _Mark, values: Sequence[str | None]) -> JobSummary:
    texts = dict(zip(_FIELDS, values, strict=True))
    request = load(texts["request"] or "{}")
    labels = {str(key): str(value) for key, value in load(texts["labels"] or "{}").items()}
    task = request.get("task") or {}
    state = mark[0]
    failure: Failure | None = failure_of(load(texts["error"])) if texts["error"] and state is JobState.FAILED else None
    looked_in = searched_texts(
        job_id, [request.get(name) for name in SEARCHED_FIELDS], labels, task.get("task_id"), failure
    )
    finished_at = texts["finished_at"]
    return JobSummary(
        id=job_id,
        state=state,
        created_ms=created_ms,
        started_ms=int(texts["started_at"]) if texts["started_at"] else None,
        ended_ms=int(finished_at) if finished_at else None,
        code=failure.code.value if failure else "",
        labels=labels,
        searched="\n".join(text[:_TEXT_CHARACTERS].casefold() for text in looked_in),
    )
