"""``python -m worker.health``: is the worker of this machine heard from? For container and orchestrator probes.

It looks for a fresh heartbeat in Redis, of a process that lives here. So it fails for a worker that is gone, stopped,
or cannot write to Redis, and it costs half a second. Workers that share a host name but not a process table are not
told apart: give each container a name of its own (``TRAINPACK_HOST_NAME``).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

from api_client.client import PackagingClient
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.fleet import WorkerInfo
from api_client.ledger.address import find_redis_url
from config.settings import Settings, load_settings
from worker.local.embedded.processes import start_ticks

HEALTHY, UNHEALTHY, EXIT_SETTINGS = 0, 1, 2


def main(arguments: list[str] | None = None) -> int:
    """Command line.

    Returns:
        0 healthy, 1 not, 2 settings that do not fit.
    """
    parser = argparse.ArgumentParser(prog="python -m worker.health", description=__doc__)
    parser.add_argument("--pid", type=int, help="only the worker with this process id")
    parser.add_argument(
        "--liveness",
        action="store_true",
        help="healthy while Redis does not answer: a restart would end the stages that outlive the outage",
    )
    options = parser.parse_args(arguments)
    try:
        return check(load_settings(redis_url=find_redis_url()), options.pid)
    except PackagingError as error:
        print(error, file=sys.stderr)
        if error.code not in (ErrorCode.REDIS_UNREACHABLE, ErrorCode.REDIS_NO_WRITES):
            return EXIT_SETTINGS
        return HEALTHY if options.liveness else UNHEALTHY


def check(settings: Settings, pid: int | None) -> int:
    """Look once, and say what was found.

    Raises:
        PackagingError: ``redis_unreachable``.
    """
    with PackagingClient(settings.redis_url, key_prefix=settings.key_prefix) as client:
        heard = living(client.workers(), settings.host_name, pid)
    if heard:
        print(f"alive: {', '.join(worker.name for worker in heard)}")
        return HEALTHY
    print(f"no worker on {settings.host_name} was heard from within {settings.lease_s:g} s", file=sys.stderr)
    return UNHEALTHY


def living(workers: Iterable[WorkerInfo], host: str, pid: int | None) -> list[WorkerInfo]:
    """Those of this host whose process is here. A record in Redis is gone one lease after the last heartbeat."""
    here = [worker for worker in workers if worker.host == host and pid in (None, worker.pid)]
    return [worker for worker in here if start_ticks(worker.pid) is not None]


if __name__ == "__main__":
    sys.exit(main())
