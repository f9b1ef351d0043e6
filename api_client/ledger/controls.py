"""What operators change while the service runs: caps by label, pauses of queues and hosts. Each change is noted."""

from __future__ import annotations

import contextlib
import functools
import re
from datetime import UTC, datetime
from typing import Any

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.fleet import Change, Fairness, LabelLimit, Pause
from api_client.contract.waiting import WaitReason
from api_client.ledger.fleet import read_fleet, read_pauses
from api_client.ledger.keys import Keys
from api_client.ledger.scripts import Script
from api_client.ledger.store import JobStore

_ENTRIES_MAX = 500
_LIMIT_MAX = 1_000_000
_NAME_CHARACTERS = 264
_LABEL_CHARACTERS = 63
_WEIGHT_MAX = 1000
_PAUSABLE = re.compile(r"(queue|host):[A-Za-z0-9._-]{1,200}")
NO_LIMIT = "none"
"""A cap that was taken away, whatever the workers were started with."""


class Controls:
    """Caps and pauses of one installation."""

    def __init__(self, store: JobStore, keys: Keys) -> None:
        self._store = store
        self._redis = store.redis
        self._keys = keys
        self._set_limit, self._set_pause, self._set_fairness = (
            Script(store.redis, keys.prefix, "api_client.ledger.lua", name)
            for name in ("set_limit", "set_pause", "set_fairness")
        )

    def limits(self) -> list[LabelLimit]:
        """Caps in force, by name: those set here, then those that workers were started with."""
        stored = self._store.call(lambda: self._redis.hgetall(self._keys.named("limits")))
        by_label = {name: _stored_limit(text) for name, text in stored.items()}
        theirs: dict[str, int | None] = {}
        for worker in read_fleet(self._redis, self._keys, self._store.call).workers:
            theirs |= worker.label_limits
        waiting = self._waiting()
        return [
            LabelLimit(name=name, limit=limit, set_here=name in by_label, waiting=waiting.get(name, 0))
            for name, limit in sorted((theirs | by_label).items())
        ]

    def _waiting(self) -> dict[str, int]:
        """How many stages wait for a place, by label and by label and value."""
        key = self._keys.held(WaitReason.LABEL_LIMIT)
        members = self._store.call(lambda: self._redis.zrange(key, 0, 9999))

        def action() -> list[Any]:
            pipe = self._redis.pipeline(transaction=False)
            for job_id, stage in (member.split("|", 1) for member in members if "|" in member):
                pipe.hget(self._keys.stages(job_id), f"{stage}:held_for")
            return pipe.execute()

        counts: dict[str, int] = {}
        for pair in filter(None, self._store.call(action) if members else []):
            for name in {pair, pair.partition("=")[0]}:
                counts[name] = counts.get(name, 0) + 1
        return counts

    def set_limit(self, name: str, limit: int | str | None, by: str) -> None:
        """Set a cap for all workers at once.

        Args:
            name: A label, or ``label=value``.
            limit: How many stages at once, from 1; :data:`NO_LIMIT`; ``None``: what workers were started with.
            by: Who does it.

        Raises:
            PackagingError: ``request_invalid``.
        """
        key, _, value = name.partition("=")
        if not key or len(name) > _NAME_CHARACTERS or len(key) > _LABEL_CHARACTERS or not (key + value).isprintable():
            raise _invalid("label", f"{name[:100]!r} is neither a label nor label=value")
        if isinstance(limit, int) and not 1 <= limit <= _LIMIT_MAX:
            raise _invalid("limit", f"a limit is a number from 1 to {_LIMIT_MAX}, not {limit}")
        if isinstance(limit, str) and limit != NO_LIMIT:
            raise _invalid("limit", f"a limit is a number or {NO_LIMIT}, not {limit[:50]!r}")
        text = "" if limit is None else str(limit)
        action = functools.partial(self._set_limit, name=name, limit=text, by=by[:200], most=_ENTRIES_MAX)
        self._check_room(self._store.call(action))

    def fairness(self) -> Fairness:
        """The label whose values take turns, and their weights."""
        stored = self._store.call(lambda: self._redis.hgetall(self._keys.named("fairness")))
        weights = {name[1:]: int(text) for name, text in stored.items() if name[:1] == "=" and text.isdecimal()}
        return Fairness(label=stored.get("label"), weights=weights)

    def set_fair_label(self, label: str | None, by: str) -> None:
        """Let jobs be begun in turn by the values of a label; ``None``: in the order of their messages.

        Raises:
            PackagingError: ``request_invalid``.
        """
        if label is not None and (not 0 < len(label) <= _LABEL_CHARACTERS or not label.isprintable() or "=" in label):
            raise _invalid("label", f"{label[:100]!r} is no label")
        self._change_fairness("label", label or "", by)

    def set_weight(self, value: str, weight: int | None, by: str) -> None:
        """How many jobs of a value are begun for each one of a value of weight 1; ``None``: 1.

        Raises:
            PackagingError: ``request_invalid``.
        """
        if len(value) > _NAME_CHARACTERS or not (value.isprintable() or not value):
            raise _invalid("value", f"{value[:100]!r} is no value of a label")
        if weight is not None and not 1 <= weight <= _WEIGHT_MAX:
            raise _invalid("weight", f"a weight is a number from 1 to {_WEIGHT_MAX}, not {weight}")
        self._change_fairness(f"={value}", "" if weight is None else str(weight), by)

    def _change_fairness(self, name: str, value: str, by: str) -> None:
        action = functools.partial(self._set_fairness, name=name, value=value, by=by[:200], most=_ENTRIES_MAX)
        self._check_room(self._store.call(action))

    def pauses(self) -> list[Pause]:
        """Queues and hosts that are paused."""
        stored = self._store.call(lambda: self._redis.hgetall(self._keys.named("paused")))
        return [*read_pauses(stored).values()]

    def set_pause(self, name: str, pause: bool, by: str) -> None:
        """Pause a queue or a host, or let it go on. What runs there goes on; nothing new begins.

        Args:
            name: ``queue:NAME`` or ``host:NAME``.
            pause: Whether to pause it.
            by: Who does it.

        Raises:
            PackagingError: ``request_invalid``.
        """
        if not _PAUSABLE.fullmatch(name):
            raise _invalid("name", f"{name[:100]!r} is neither queue:NAME nor host:NAME")
        action = functools.partial(self._set_pause, name=name, pause=pause, by=by[:200], most=_ENTRIES_MAX)
        self._check_room(self._store.call(action))

    def changes(self, limit: int) -> list[Change]:
        """The newest changes, newest first."""
        key = self._keys.named("audit")
        entries = self._store.call(lambda: self._redis.xrevrange(key, count=limit))
        read = []
        for entry_id, fields in entries:
            with contextlib.suppress(ValueError):
                at = datetime.fromtimestamp(int(entry_id.partition("-")[0]) / 1000, UTC)
                read.append(Change.model_validate({**fields, "at": at}))
        return read

    def _check_room(self, answer: list[Any]) -> None:
        if answer[0] == "full":
            raise _invalid("name", f"{_ENTRIES_MAX} are set already; take one away first")


def _stored_limit(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


def _invalid(field: str, reason: str) -> PackagingError:
    return PackagingError(ErrorCode.REQUEST_INVALID, f"{field}: {reason}", fields={"field": field})
