"""Who may end a transfer early: whoever asked for it, or a sibling request that has failed for good."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace

from api_client.s3 import S3Retry
from worker.stop import ShouldStop, StopRequested


@dataclass(frozen=True)
class Limits:
    """The pace of a transfer's requests.

    Attributes:
        retry: Attempts and pauses.
        should_stop: Asked before each attempt and during pauses.
        abandoned: Set when a sibling request has failed for good.
    """

    retry: S3Retry = field(default_factory=S3Retry)
    should_stop: ShouldStop | None = None
    abandoned: threading.Event | None = None

    def check(self) -> None:
        """Leave where work was asked to end.

        Raises:
            StopRequested: asked to stop, or a sibling failed.
        """
        if (self.should_stop is not None and self.should_stop()) or (
            self.abandoned is not None and self.abandoned.is_set()
        ):
            raise StopRequested

    def abandonable(self, abandoned: threading.Event) -> Limits:
        """The same limits, ended by the given event too."""
        return replace(self, abandoned=abandoned)
