"""Training tasks that orchestrators register: kept by id, the newest first, the oldest given way once there are many.

What is read is input: a record of another form, or too long, is passed over.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any, Final

from pydantic import ValidationError

from api_client.contract.byte_bounds import REQUEST_BYTES
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.task import RegisteredTask
from api_client.ledger.keys import Keys
from api_client.ledger.scripts import Script
from api_client.ledger.store import JobStore

MOST: Final = 10_000
_ID_CHARACTERS: Final = 400


class Tasks:
    """The registered tasks of one service.

    Args:
        store: For its connection and its patience.
        keys: Names of keys.
    """

    def __init__(self, store: JobStore, keys: Keys) -> None:
        self._store = store
        self._tasks, self._at = keys.named("jobs:tasks"), keys.named("jobs:tasks:at")
        self._register = Script(store.redis, keys.prefix, "api_client.ledger.lua", "register_task")

    def register(self, registered: RegisteredTask, *, replace: bool) -> None:
        """Keep a task.

        Raises:
            PackagingError: ``task_conflict`` where it is known with other paths, ``request_invalid`` for one too long.
        """
        task, record = registered.task, registered.model_dump_json(exclude_defaults=True)
        if len(record.encode()) > REQUEST_BYTES or len(task.task_id) > _ID_CHARACTERS:
            raise PackagingError(
                ErrorCode.REQUEST_INVALID,
                f"task: has {len(record.encode())} bytes, at most {REQUEST_BYTES} are kept; its id "
                f"{len(task.task_id)} characters, at most {_ID_CHARACTERS}",
                fields={"field": "task"},
            )
        paths = json.dumps([task.base_model, task.output_dir])
        arguments = {
            "id": task.task_id,
            "record": record,
            "paths": paths,
            "replace": "1" if replace else "",
            "most": MOST,
        }
        status, *rest = self._store.call(lambda: self._register(**arguments))
        if status == "conflict":
            base, output = json.loads(json.loads(rest[0])["paths"])
            raise PackagingError(
                ErrorCode.TASK_CONFLICT,
                f"task {task.task_id} is registered with base model {base} and output directory {output}; "
                f"now it has {task.base_model} and {task.output_dir}",
                fields={"task_id": task.task_id, "base_model": base, "output_dir": output},
            )

    def get(self, task_id: str) -> RegisteredTask | None:
        """One task; ``None`` where none of that id is registered."""
        text = self._store.call(lambda: self._store.redis.hget(self._tasks, task_id))
        return _read(text)

    def newest(self, limit: int) -> list[RegisteredTask]:
        """The tasks registered last, newest first."""
        ids = self._store.call(lambda: self._store.redis.zrange(self._at, 0, limit - 1, desc=True))
        texts: list[Any] = self._store.call(lambda: self._store.redis.hmget(self._tasks, ids)) if ids else []
        return [task for task in map(_read, texts) if task is not None]


def _read(text: str | None) -> RegisteredTask | None:
    with contextlib.suppress(ValidationError, ValueError, TypeError, KeyError):
        if text and len(text) <= 2 * REQUEST_BYTES:
            return RegisteredTask.model_validate_json(json.loads(text)["task"])
    return None
