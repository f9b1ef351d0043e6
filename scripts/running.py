"""An embedded stack for the time of a script."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TRAINPACK = (sys.executable, "-m", "api_client.cli")


@contextmanager
def running_stack(home: Path, *options: str) -> Iterator[tuple[str, dict[str, str]]]:
    """``trainpack up`` below ``home``, without settings and language of whoever runs the script.

    Yields:
        The console's address, and the environment in which commands find the stack.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("TRAINPACK_", "LC_"))}
    environment = inherited | {"TRAINPACK_HOME": str(home), "LANG": "C.UTF-8", "PYTHONPATH": str(ROOT)}
    command = [*TRAINPACK, "up", *options, "--json"]
    up = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    assert up.stdout is not None
    try:
        said = up.stdout.readline()
        console = json.loads(said)["console"] if said else None
        if console is None:
            raise SystemExit(f"no console: a stack runs already below {home}, or the console is not installed")
        yield console, environment
    finally:
        up.send_signal(signal.SIGINT)
        up.wait(60)
