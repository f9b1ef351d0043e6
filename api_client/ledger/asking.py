"""Questions about files, which workers answer: the asker may have neither the disk nor torch.

A question is a string with a time to live, its id waits in a list, the answer is a stream of one entry. Any worker may
take it; a thread beside the stage slots does (``worker.service.questions``), so that a busy worker answers too. A
question whose asker has gone is not answered, and every key ends by itself.
"""

from __future__ import annotations

import functools
import json
import secrets
import time
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import SCHEMA_VERSION
from api_client.ledger.keys import Keys
from api_client.ledger.store import JobStore
from api_client.ledger.text_redis import TextRedis

QUESTION_TIMEOUT_S = 30.0
ANSWER_KEPT_S = 60.0
_BLOCK_MS = 250
"""A client's connections wait for their answers longer than this."""
MAX_WAITING = 1000
"""Questions that may wait; older ones are dropped, and their askers told after their time-out."""


class QuestionKind(StrEnum):
    """What can be asked."""

    CHECKPOINTS = "checkpoints"
    """``run``: the checkpoints of a run directory."""
    SIZES = "sizes"
    """``model``: the size of every quant type's file, and the model's dimensions."""
    RUNS = "runs"
    """``search``: the training runs below the directories that workers are told of, those whose path holds a text."""
    SPACE = "space"
    """``path``: the room on the disk of an output directory."""


def ask(
    store: JobStore,
    keys: Keys,
    *,
    kind: QuestionKind,
    parameters: Mapping[str, str],
    timeout_s: float,
) -> dict[str, Any]:
    """Put a question and wait for its answer.

    Raises:
        PackagingError: ``question_unanswered``, ``redis_unreachable``, and what the answer says went wrong.
    """
    question_id = secrets.token_hex(12)
    question = {"schema_version": SCHEMA_VERSION, "kind": kind.value, "parameters": dict(parameters)}
    store.call(lambda: _put(store.redis, keys, question_id, json.dumps(question), timeout_s))
    try:
        answer = _wait(store, keys.answer(question_id), time.monotonic() + timeout_s)
    finally:
        store.call(lambda: store.redis.delete(keys.question(question_id), keys.answer(question_id)))
    if answer is None:
        raise PackagingError(
            ErrorCode.QUESTION_UNANSWERED,
            f"no worker answered the question about {kind.value} in {timeout_s:g} s",
            fields={"kind": kind.value, "timeout_s": timeout_s},
        )
    if "error" in answer:
        raise PackagingError.from_dict(answer["error"])
    result: dict[str, Any] = answer["result"]
    return result


def no_worker(kind: QuestionKind) -> PackagingError:
    """Error where nobody is there to answer."""
    return PackagingError(
        ErrorCode.QUESTION_UNANSWERED,
        f"no worker is running that could answer the question about {kind.value}",
        fields={"kind": kind.value},
    )


def _put(redis: TextRedis, keys: Keys, question_id: str, question: str, timeout_s: float) -> None:
    pipe = redis.pipeline(transaction=True)
    pipe.set(keys.question(question_id), question, px=max(1, int(timeout_s * 1000)))
    pipe.lpush(keys.named("questions"), question_id)
    pipe.ltrim(keys.named("questions"), 0, MAX_WAITING - 1)
    pipe.pexpire(keys.named("questions"), int((timeout_s + ANSWER_KEPT_S) * 1000))
    pipe.execute()


def _wait(store: JobStore, key: str, deadline: float) -> dict[str, Any] | None:
    while (left_s := deadline - time.monotonic()) > 0:
        block_ms = max(1, min(_BLOCK_MS, int(left_s * 1000)))
        if store.call(functools.partial(store.redis.xread, {key: "0"}, count=1, block=block_ms)):
            entries = store.call(lambda: store.redis.xrange(key, count=1))
            answer: dict[str, Any] | None = json.loads(entries[0][1]["answer"]) if entries else None
            return answer
    return None
