"""Worker processes of the stack: command, environment, and how one knows that a worker serves."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from api_client.client import PackagingClient
from api_client.contract.errors import PackagingError

COMMAND = (sys.executable, "-P", "-m", "worker")
"""Nothing is imported from the working directory, which is the user's."""
GRACE_S = 75.0
"""Longer than a worker drains by default, so that it can hand its stage back."""


def worker_environment(stack: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment with the addresses of the stack."""
    return {**os.environ, **stack, "PYTHONUNBUFFERED": "1"}


def serving_pids(redis_url: str) -> frozenset[int]:
    """Process ids of the workers that Redis has heard from."""
    try:
        with PackagingClient(redis_url) as client:
            return frozenset(worker.pid for worker in client.workers())
    except PackagingError:
        return frozenset()


@dataclass(frozen=True)
class WorkerProgram:
    """What the stack runs as a worker.

    Attributes:
        command: Program and arguments.
        serving_pids: Given the Redis address, the process ids of workers that serve.
        grace_s: How long one may take to stop.
    """

    command: Sequence[str] = COMMAND
    serving_pids: Callable[[str], frozenset[int]] = serving_pids
    grace_s: float = GRACE_S


OWN_PROGRAM = WorkerProgram()
"""``python -m worker``."""
