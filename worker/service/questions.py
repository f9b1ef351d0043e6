"""The thread that takes questions about files. It waits beside the stage slots, so that a busy worker answers too.

It holds no lease and no slot: it waits on Redis and on a child, ``worker.service.answers``, which is ended when it
takes too long. One question at a time for each worker. ``api_client.ledger.questions`` describes the way there and
back.
"""

from __future__ import annotations

import json
import time
from multiprocessing.context import ForkServerContext
from typing import Any

import structlog

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import SCHEMA_VERSION
from api_client.ledger.asking import ANSWER_KEPT_S, QUESTION_TIMEOUT_S, QuestionKind
from api_client.ledger.connecting import connect
from api_client.ledger.figures import read_figures
from api_client.ledger.keys import Keys
from config.log_events import LogEvent
from config.settings import Settings
from worker.service import answers
from worker.service.loop import Loop
from worker.service.supervisor.drain import Drain
from worker.service.supervisor.process import StageProcess

_log = structlog.stdlib.get_logger(__name__)

LIMIT_S = QUESTION_TIMEOUT_S
"""Longest search for one answer; nobody waits longer by default."""
_REDIS_TIMEOUT_S = 5.0
_ANSWER_BYTES = 2 * 2**20
_WAIT_S = 1.0
_POLL_S = 0.2


class QuestionListener:
    """Answers questions for one worker.

    Args:
        settings: The worker's.
        host: Name of this machine, for the answers.
        context: Of the fork server, which must run.
        drain: Ends it early.
    """

    def __init__(self, settings: Settings, host: str, context: ForkServerContext, drain: Drain) -> None:
        self._settings = settings
        self._host = host
        self._context = context
        self._drain = drain
        self._keys = Keys(settings.key_prefix)
        self._redis = connect(settings.redis_url, _REDIS_TIMEOUT_S)
        # A round waits for a question by itself, but not where it fails.
        self._loop = Loop("questions", self._take_one, 0.0, LogEvent.QUESTION_FAILED, rest_s=_WAIT_S)

    def start(self) -> None:
        """Start listening."""
        self._loop.start()

    def stop(self) -> None:
        """Stop; a question that is being answered is given up."""
        self._loop.stop()
        self._redis.close()

    @property
    def _over(self) -> bool:
        return self._loop.ending or self._drain.requested

    def _take_one(self) -> None:
        if self._over:
            self._loop.end()  # A worker that drains takes no more questions.
        elif taken := self._redis.brpop([self._keys.named("questions")], timeout=_WAIT_S):
            self._handle(taken[1])

    def _handle(self, question_id: str) -> None:
        text = self._redis.get(self._keys.question(question_id))
        if text is None:
            return  # Its asker has gone.
        started = time.monotonic()
        try:
            kind, parameters = _read(text)
            answer = {"result": _short_enough(kind, self._with_figures(kind, self._find(kind, parameters)))}
        except PackagingError as error:
            answer = {"error": error.failure.to_record()}
        code = answer.get("error", {}).get("code")
        _log.info(
            LogEvent.QUESTION_ANSWERED, question=text[:200], code=code, seconds=round(time.monotonic() - started, 2)
        )
        if self._redis.exists(self._keys.question(question_id)):
            key = self._keys.answer(question_id)
            pipe = self._redis.pipeline(transaction=True)
            pipe.xadd(key, {"answer": json.dumps(answer)})
            pipe.pexpire(key, int(ANSWER_KEPT_S * 1000))
            pipe.execute()

    def _with_figures(self, kind: QuestionKind, result: dict[str, Any]) -> dict[str, Any]:
        """Sizes, with what was measured of files of such models; the child that found the sizes has no Redis."""
        if kind is not QuestionKind.SIZES:
            return result
        files = read_figures(self._redis, self._keys, str(result["shape"]["architecture"]))
        return result | {"measured": [file.model_dump(mode="json", exclude_none=True) for file in files]}

    def _find(self, kind: QuestionKind, parameters: dict[str, str]) -> dict[str, Any]:
        start = answers.AnswerStart(
            kind, parameters, self._host, self._settings.for_stages(), self._settings.scratch_dir
        )
        try:
            process = StageProcess(self._context, start, entry=answers.main, name=f"answer-{kind.value}")
        except (OSError, EOFError) as error:
            raise _unanswered(kind, f"its process was not started: {error}") from error
        try:
            return self._wait(process, kind)
        finally:
            process.close()

    def _wait(self, process: StageProcess, kind: QuestionKind) -> dict[str, Any]:
        deadline = time.monotonic() + LIMIT_S
        while True:
            ended = process.ended()
            for message in process.poll(_POLL_S):
                if message["type"] == "error":
                    raise PackagingError.from_dict(message["error"])
                result: dict[str, Any] = message["result"]
                return result
            if ended:
                raise _unanswered(kind, f"its process died ({process.death()})", list(process.last_lines))
            if self._over:
                raise _unanswered(kind, "the worker stops")
            if time.monotonic() > deadline:
                raise _unanswered(kind, f"it took longer than {LIMIT_S:g} s")


def _read(text: str) -> tuple[QuestionKind, dict[str, str]]:
    try:
        data = json.loads(text)
        version, parameters = int(data["schema_version"]), {str(k): str(v) for k, v in data["parameters"].items()}
        kind = QuestionKind(data["kind"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PackagingError(
            ErrorCode.REQUEST_INVALID, f"this worker does not understand the question: {error}"
        ) from None
    if version > SCHEMA_VERSION:
        raise PackagingError(
            ErrorCode.REQUEST_INVALID, f"this worker does not understand questions of version {version}"
        )
    return kind, parameters


def _short_enough(kind: QuestionKind, result: dict[str, Any]) -> dict[str, Any]:
    """An answer that may enter Redis: it is made of names and numbers from someone's files."""
    size = len(json.dumps(result))
    if size > _ANSWER_BYTES:
        raise _unanswered(kind, f"the answer has {size} bytes, at most {_ANSWER_BYTES} are given")
    return result


def _unanswered(kind: QuestionKind, reason: str, last_lines: list[str] | None = None) -> PackagingError:
    return PackagingError(
        ErrorCode.QUESTION_UNANSWERED,
        f"a worker could not answer the question about {kind.value}: {reason}",
        fields={"kind": kind.value, "last_lines": last_lines or []},
    )
