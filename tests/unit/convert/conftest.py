from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.unit.convert.convert_samples import save_adapter, save_model
from worker.models.adapters import Overlay, build_overlay, normalise_for_export, open_adapter
from worker.models.adapters.export import LoraPair
from worker.models.adapters.updates import Precision
from worker.models.checkpoint import BaseModel, open_base_model


@dataclass(frozen=True)
class Run:
    """A base model and an adapter trained on it."""

    base: Path
    adapter: Path

    def open_base(self) -> BaseModel:
        return open_base_model(self.base)

    def overlay(self, path: Path, precision: Precision = "base") -> Overlay:
        build_overlay(open_adapter(self.adapter), self.open_base(), path, precision=precision)
        return Overlay.load(path)

    def pairs(self) -> list[LoraPair]:
        return normalise_for_export(open_adapter(self.adapter), self.open_base())


@pytest.fixture(scope="session")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """A run per architecture, made once."""
    made: dict[str, Run] = {}

    def make(name: str) -> Run:
        if name not in made:
            root = tmp_path_factory.mktemp(name)
            base = save_model(name, root / "base-model")
            targets = {"mamba": ["in_proj", "x_proj"]}.get(name, "all-linear")
            made[name] = Run(base, save_adapter(base, root / "checkpoint-10", target_modules=targets))
        return made[name]

    return make
