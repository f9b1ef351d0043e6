"""Submits and power cuts: how many answered jobs a server still has that loses its power right after the answer.

``python -m tests.bench kept [--cuts 1000] [--waits none,disk] [--servers bundled] [--fsync everysec]``. A cut ends the
server with SIGKILL and takes from its append-only file what it had not synced. Also: what a submit then costs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from api_client import PackagingClient, PackagingRequest
from tests.integration.power import cut_power, powered, sync_library
from tests.integration.servers import Server, program


@dataclass
class Kept:
    """Figures of one server.

    Attributes:
        answered: Jobs whose submit had returned.
        lost: Those that were gone after a cut.
        bytes_lost: Bytes of the append-only file that were not synced.
        times_s: How long each submit took.
    """

    answered: int = 0
    lost: int = 0
    bytes_lost: int = 0
    times_s: list[float] = field(default_factory=list)

    def __iadd__(self, other: Kept) -> Kept:
        self.answered += other.answered
        self.lost += other.lost
        self.bytes_lost += other.bytes_lost
        self.times_s += other.times_s
        return self


def some_request(directory: Path) -> PackagingRequest:
    """A request that nobody will run."""
    return PackagingRequest(base_model="/models/base", checkpoint="/runs/1/c", output_dir=str(directory))


def cut_after_answers(server: Server, wait: str, cuts: int) -> Kept:
    """Submit, cut the power at the answer, start again, look for every job that was ever answered."""
    found, request = Kept(), some_request(server.directory)
    url = f"redis://127.0.0.1:{server.port}/0"
    ids: set[str] = set()
    server.start()
    for _ in range(cuts):
        with PackagingClient(url, submit_wait=wait) as client:
            started = time.monotonic()
            ids.add(client.submit(request).id)
            found.times_s.append(time.monotonic() - started)
        found.bytes_lost += cut_power(server)
        server.start()
        with PackagingClient(url, submit_wait=wait) as client:
            here = {job_id for job_id in ids if client._store.redis.exists(client._keys.job(job_id))}
        found.answered += 1
        found.lost += len(ids - here)
        ids = here
    cut_power(server)
    return found


def cost(server: Server, wait: str, submits: int, clients: int) -> tuple[float, float]:
    """Median seconds of a submit and submits a second, of so many clients at once on a server that stays."""
    request = some_request(server.directory)

    def run(count: int) -> list[float]:
        with PackagingClient(f"redis://127.0.0.1:{server.port}/0", submit_wait=wait) as client:
            client.submit(request)
            times = []
            for _ in range(count):
                started = time.monotonic()
                client.submit(request)
                times.append(time.monotonic() - started)
            return times

    server.start()
    started = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        times = [taken for part in pool.map(run, [submits // clients] * clients) for taken in part]
    wall_s = time.monotonic() - started
    cut_power(server)
    return statistics.median(times), len(times) / wall_s


def options(fsync: str) -> tuple[str, ...]:
    """Of a server that appends."""
    return ("--appendonly", "yes", "--appendfsync", fsync, "--save", "")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", type=int, default=1000)
    parser.add_argument("--waits", default="none,disk")
    parser.add_argument("--servers", default="bundled")
    parser.add_argument("--fsync", default="everysec")
    parser.add_argument("--at-once", type=int, default=10, help="servers that are cut at the same time")
    parser.add_argument("--submits", type=int, default=40, help="submits whose cost is measured")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as text:
        place = Path(text)
        library = sync_library(place)
        print("power cuts" if library else "kills only: no C compiler here, what was written counts as kept")
        for name in arguments.servers.split(","):
            for wait in arguments.waits.split(","):

                def new(part: str, name: str = name, wait: str = wait) -> Server:
                    (directory := place / f"{name}-{wait}-{part}").mkdir()
                    return powered(Server(program(name), directory, options(arguments.fsync)), library)

                servers = [new(str(number)) for number in range(arguments.at_once)]
                cuts = arguments.cuts // len(servers)
                total = Kept()
                with ThreadPoolExecutor(len(servers)) as pool:
                    for part in pool.map(cut_after_answers, servers, [wait] * len(servers), [cuts] * len(servers)):
                        total += part
                print(
                    f"{name}, appendfsync {arguments.fsync}, wait {wait}: {total.answered} answered, {total.lost} lost "
                    f"({total.bytes_lost} bytes of the file cut), submit median "
                    f"{statistics.median(total.times_s) * 1000:.1f} ms, worst {max(total.times_s) * 1000:.0f} ms",
                    flush=True,
                )
                for clients in (1, 20):
                    median_s, rate = cost(new(f"cost-{clients}"), wait, arguments.submits * clients, clients)
                    print(f"  {clients:>2} clients: median {median_s * 1000:.1f} ms, {rate:.1f} submits/s", flush=True)


if __name__ == "__main__":
    main()
