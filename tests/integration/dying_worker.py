"""A worker that dies in the instant in which the result of a second attempt to publish has been recorded."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from api_client import StageName
from worker.service.state.transitions import Lease, Settled, Transitions

_complete = Transitions.complete


def complete_and_die(transitions: Transitions, lease: Lease, *arguments: Any) -> Settled | None:
    """Record, and be killed."""
    settled = _complete(transitions, lease, *arguments)
    if lease.stage is StageName.PUBLISH and lease.attempt > 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return settled


if __name__ == "__main__":
    setattr(Transitions, "complete", complete_and_die)  # noqa: B010
    from worker.__main__ import main

    sys.exit(main())
