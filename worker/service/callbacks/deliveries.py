"""Announcements as Redis keeps them: taken for a while, then settled. They outlive every worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from api_client.ledger.keys import Keys
from api_client.ledger.scripts import Script
from api_client.ledger.text_redis import TextRedis


@dataclass(frozen=True)
class Delivery:
    """One announcement, taken for one try."""

    job_id: str
    number: str
    """Which end of the job it announces; a replayed job ends again."""
    tries: int
    """This one included."""
    url: str
    claim: str
    """Until when it is taken, as stored: whoever settles must still hold it."""

    @property
    def id(self) -> str:
        """The same for every try."""
        return f"{self.job_id}.{self.number}"


@dataclass(frozen=True)
class Dropped:
    """An entry of the queue that is no announcement, or one that nobody can make; it is gone from the queue."""

    record: str
    """The entry, as far as it is text."""
    reason: str


class Deliveries:
    """The two scripts.

    Args:
        redis: A connection pool.
        keys: Names of keys.
        claim_s: How long a taken announcement is left to its taker.
    """

    def __init__(self, redis: TextRedis, keys: Keys, claim_s: float) -> None:
        self._claim_ms = int(claim_s * 1000)
        self._take, self._settle = (
            Script(redis, keys.prefix, "worker.service.callbacks.lua", name) for name in ("take", "settle")
        )

    def take(self) -> Delivery | Dropped | None:
        """The next one that is due."""
        status, *rest = self._take(claim_ms=self._claim_ms)
        if status == "none":
            return None
        if status == "dropped":
            return Dropped(*rest)
        job_id, number, tries, url, claim = rest
        return Delivery(job_id, number, int(tries), url, claim)

    def settle(
        self,
        delivery: Delivery,
        *,
        delay_s: float | None,
        level: Literal["info", "warning", "error"],
        message: str,
        fields: dict[str, Any],
    ) -> bool:
        """Record what came of a try, in the job's log too.

        Args:
            delivery: As taken.
            delay_s: Time to the next try; ``None`` when there is none.
            level: Of the log entry.
            message: Of the log entry.
            fields: Of the log entry.

        Returns:
            Whether it was still ours to settle.
        """
        answer = self._settle(
            id=delivery.job_id,
            number=delivery.number,
            claim=delivery.claim,
            delay_ms=-1 if delay_s is None else int(delay_s * 1000),
            level=level,
            message=message,
            fields=fields,
        )
        return bool(answer[0] == "ok")
