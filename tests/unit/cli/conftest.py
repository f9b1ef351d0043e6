from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from api_client.cli import run
from tests.tiny import one_value

CLOSED_REDIS = "redis://:secret@127.0.0.1:1/0"


@dataclass(frozen=True)
class Ran:
    """What a command line did."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on standard output."""
        assert self.out.endswith("\n")
        assert self.out.count("\n") == 1, f"more than one line: {self.out!r}"
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        """The error in it."""
        assert list(self.document) == ["error"]
        error: dict[str, Any] = self.document["error"]
        assert set(error) == {"code", "message", "remedy", "fields"}
        assert all(error[key] for key in ("code", "message", "remedy"))
        return error


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the caller's; a Redis that is not there."""
    for name in os.environ:
        if name.startswith(("TRAINPACK_", "LC_", "LANG")) or name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("LANG", "C.UTF-8")
    monkeypatch.setenv("TRAINPACK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TRAINPACK_REDIS_URL", CLOSED_REDIS)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run a command line in this process."""

    def call(*arguments: object) -> Ran:
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Ran(code, captured.out, captured.err)

    return call


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A base model directory and a run with two adapters, as far as the command line looks."""
    for name in ("checkpoint-1", "checkpoint-2"):
        checkpoint = tmp_path / "run" / name
        checkpoint.mkdir(parents=True)
        (checkpoint / "adapter_config.json").write_text("{}")
        (checkpoint / "adapter_model.safetensors").write_bytes(one_value())
    (tmp_path / "base").mkdir()
    return tmp_path / "run"
