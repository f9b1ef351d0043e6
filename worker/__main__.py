"""``python -m worker``: run a worker with the settings of the environment."""

from __future__ import annotations

import signal
import sys

from api_client.contract.errors import PackagingError
from api_client.ledger.address import find_redis_url
from config.settings import load_settings


def main() -> int:
    """Read the settings and run."""
    try:
        return _run()
    except KeyboardInterrupt:  # before the worker listens for signals: nothing has begun
        return 128 + signal.SIGINT


def _run() -> int:
    from worker.service import program as service

    try:
        settings = load_settings(redis_url=find_redis_url())
    except PackagingError as error:
        print(f"{error}\n{error.remedy}", file=sys.stderr)
        return service.EXIT_SETTINGS
    return service.run(settings)


if __name__ == "__main__":
    sys.exit(main())
