"""A tiny run, made once; tests copy what they break."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from api_client.contract.request import PackagingRequest
from tests.tiny import tiny_base, tiny_checkpoint


@dataclass(frozen=True)
class TinyRun:
    """Private copies of a base model and a run with one checkpoint."""

    base: Path
    run: Path
    checkpoint: Path
    output: Path

    def request(self, **fields: Any) -> PackagingRequest:
        """A request for it by the default template; without evaluation, which tests of other things do not wait for."""
        given = {"base_model": self.base, "checkpoint": self.checkpoint, "output_dir": self.output}
        return PackagingRequest(**given | {"evaluation": "off"} | fields)


@pytest.fixture(scope="session")
def tiny_originals(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("tiny")
    base = tiny_base(directory / "base")
    tiny_checkpoint(base, directory / "run", step=10)
    return base, directory / "run"


@pytest.fixture
def tiny(tiny_originals: tuple[Path, Path], tmp_path: Path) -> TinyRun:
    base, run = tiny_originals
    shutil.copytree(base, tmp_path / "base")
    shutil.copytree(run, tmp_path / "run")
    config = tmp_path / "run" / "checkpoint-10" / "adapter_config.json"
    # else the original, with its tokenizer, would still be found through the adapter
    config.write_text(config.read_text().replace(str(base), str(tmp_path / "base")))
    return TinyRun(tmp_path / "base", tmp_path / "run", tmp_path / "run" / "checkpoint-10", tmp_path / "out")


Breaker = Callable[[TinyRun], Any]
