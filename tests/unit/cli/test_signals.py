"""What ends ``up``, ``package`` and ``demo``, and whether they can clean up then."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CLEANS_UP = """
import sys, time
from pathlib import Path
from worker.local.cli.signals import terminate_as_interrupt
with terminate_as_interrupt():
    try:
        print("ready", flush=True)
        while True:  # signal.pause() would sleep through a signal that comes right before it
            time.sleep(0.05)
    except KeyboardInterrupt:
        print("cleaning up", flush=True)
        Path(sys.argv[1]).touch()
"""


def start(tmp_path: Path, stdout: int, *before: str) -> subprocess.Popen[bytes]:
    command = [*before, sys.executable, "-c", CLEANS_UP, str(tmp_path / "clean")]
    handler = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    try:
        return subprocess.Popen(command, stdin=stdout, stdout=stdout, stderr=stdout, cwd=ROOT, start_new_session=True)
    finally:
        signal.signal(signal.SIGHUP, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_to_end_lets_it_clean_up(tmp_path: Path, number: int) -> None:
    terminal, theirs = pty.openpty()
    process = start(tmp_path, theirs)
    os.close(theirs)
    assert b"ready" in os.read(terminal, 100)
    process.send_signal(number)
    assert process.wait(30) == 0
    assert (tmp_path / "clean").exists()
    os.close(terminal)


def test_a_terminal_that_is_gone_does_not_keep_it_from_cleaning_up(tmp_path: Path) -> None:
    terminal, theirs = pty.openpty()
    process = start(tmp_path, theirs)
    os.close(theirs)
    assert b"ready" in os.read(terminal, 100)
    os.close(terminal)
    process.send_signal(signal.SIGHUP)  # as the system does to the terminal's own session
    assert process.wait(30) == 0
    assert (tmp_path / "clean").exists()


def test_under_nohup_a_hang_up_stays_ignored(tmp_path: Path) -> None:
    read, write = os.pipe()
    process = start(tmp_path, write, "nohup")
    os.close(write)
    with os.fdopen(read, "rb") as output:
        assert b"ready\n" in iter(output.readline, b"")
        status = Path(f"/proc/{process.pid}/status").read_text()
        [ignored] = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigIgn")]
        assert ignored >> (signal.SIGHUP - 1) & 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
