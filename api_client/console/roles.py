"""Roles: what a token may do. Each includes the ones before it."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """What a token may do."""

    READ = "read"
    """See jobs, logs, outputs, workers and queues."""
    SUBMIT = "submit"
    """Submit and cancel jobs, replay one, and ask about files on the workers."""
    OPERATE = "operate"
    """Replay many jobs at once, set caps by label, pause queues and hosts."""

    def covers(self, needed: Role) -> bool:
        """Whether this role may do what ``needed`` may."""
        order = list(Role)
        return order.index(self) >= order.index(needed)
