"""A process that owns a stack: starts it, says so with its state on one line, and waits to be told to stop."""

import json
import signal
import sys
from pathlib import Path

from worker.local.embedded import Stack


def main() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may start background processes with it ignored
    with Stack(Path(sys.argv[1]), workers=0) as stack:
        guard = stack._processes._guard.pid if stack._processes is not None else None
        services = {name: process.pid for name, process in stack.info.services.items()}
        print(json.dumps({"owned": stack.owned, "guard": guard, "services": services}), flush=True)
        sys.stdin.read()


main()
