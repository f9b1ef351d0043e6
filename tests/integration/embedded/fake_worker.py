"""A worker as the stack sees one: says that it serves, ends on SIGTERM. Usage: fake_worker.py DIRECTORY MODE."""

import os
import signal
import sys
from pathlib import Path

import redis

directory, mode = Path(sys.argv[1]), sys.argv[2]


def end(*_: object) -> None:
    client = redis.Redis.from_url(os.environ["TRAINPACK_REDIS_URL"])
    (directory / "last-words").write_text(f"redis answered {client.ping()}")
    sys.exit(0)


if mode == "broken":
    print("Traceback: no such thing as a worker here")
    sys.exit(7)
signal.signal(signal.SIGTERM, signal.SIG_IGN if mode == "stubborn" else end)
if mode != "silent":
    (directory / f"serving-{os.getpid()}").touch()
while True:
    signal.pause()
