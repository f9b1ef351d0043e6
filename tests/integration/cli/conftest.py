from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.integration.harness import BOUND_S, ROOT, Installation
from tests.tiny import one_value

COMMAND = [sys.executable, "-m", "api_client.cli"]


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on standard output."""
        assert self.out.count("\n") == 1, self
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """One JSON document per line."""
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass
class Terminal:
    """A command in a terminal of its own."""

    process: subprocess.Popen[bytes]
    screen: int
    seen: bytearray = field(default_factory=bytearray)

    def until(self, text: str, bound_s: float = BOUND_S) -> str:
        """Read until the text has appeared."""
        deadline = time.monotonic() + bound_s
        while text.encode() not in self.seen:
            assert time.monotonic() < deadline, f"no {text!r} in {self.seen.decode(errors='replace')}"
            if not self._read(0.2) and self.process.poll() is not None:
                assert text.encode() in self.seen, self.seen.decode(errors="replace")
        return self.seen.decode(errors="replace")

    def press(self, keys: bytes) -> None:
        """Type keys; ``\\x03`` is Ctrl-C."""
        os.write(self.screen, keys)

    def end(self, bound_s: float = BOUND_S) -> int:
        """Wait for the exit code, reading on."""
        deadline = time.monotonic() + bound_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.seen.decode(errors="replace")
            self._read(0.1)
        while self._read(0):
            pass
        return self.process.returncode

    def _read(self, wait_s: float) -> bool:
        if not select.select([self.screen], [], [], wait_s)[0]:
            return False
        try:
            data = os.read(self.screen, 65536)
        except OSError:  # the other end is closed
            return False
        self.seen += data
        return bool(data)


@dataclass
class CommandLine:
    """Runs commands against one installation."""

    installation: Installation
    terminals: list[Terminal] = field(default_factory=list)

    def environment(self, **more: str) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in self.installation.environment().items()
            if not name.startswith("LC_") and name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")
        }
        return {**inherited, "LANG": "C.UTF-8", "TERM": "xterm-256color", **more}

    def __call__(self, *arguments: object, stdin: str = "", **environment: str) -> Ran:
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)],
            input=stdin,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=self.environment(**environment),
            timeout=BOUND_S * 2,
            check=False,
        )
        assert "Traceback" not in done.stderr
        return Ran(done.returncode, done.stdout, done.stderr)

    def terminal(self, *arguments: object, columns: int = 100, lines: int = 30, **environment: str) -> Terminal:
        screen, inner = pty.openpty()
        termios.tcsetwinsize(inner, (lines, columns))
        process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            cwd=ROOT,
            env=self.environment(**environment),
            start_new_session=True,
            preexec_fn=_own_terminal,  # noqa: PLW1509 - no threads here
        )
        os.close(inner)
        opened = Terminal(process, screen)
        self.terminals.append(opened)
        return opened

    def submit(self, output: str, *more: object, **labels: str) -> str:
        """Submit a job for the small stages; labels say how they behave."""
        flags = [part for key, value in labels.items() for part in ("--label", f"{key}={value}")]
        target = self.installation.directory / output
        target.mkdir(exist_ok=True)
        ran = self("submit", *inputs(self.installation), "--output", target, *flags, *more, "--json")
        assert ran.code == 0, ran
        return str(ran.document["id"])


def _own_terminal() -> None:
    """Make the terminal the session's own, so that Ctrl-C reaches the command."""
    import fcntl

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def inputs(installation: Installation) -> list[str]:
    """Flags for a base model and checkpoint that the command line can see."""
    base, checkpoint = installation.directory / "base", installation.directory / "run" / "checkpoint-9"
    base.mkdir(exist_ok=True)
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / "adapter_config.json").write_text("{}")
    (checkpoint / "adapter_model.safetensors").write_bytes(one_value())
    return ["--base", str(base), "--checkpoint", str(checkpoint)]


@pytest.fixture(scope="module")
def installed(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A service with one worker, shared by a module's tests."""
    installation = Installation(valkey, tmp_path_factory.mktemp("cli"))
    installation.start_worker(slots=2)
    yield installation
    installation.close()


@pytest.fixture
def trainpack(installed: Installation) -> Iterator[CommandLine]:
    """The command line against it."""
    line = CommandLine(installed)
    yield line
    for terminal in line.terminals:
        if terminal.process.poll() is None:
            terminal.process.kill()
            terminal.process.wait(10)
        os.close(terminal.screen)
