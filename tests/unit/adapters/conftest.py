from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.adapters.peft_reference import save_base
from tests.unit.adapters.tiny_models import tiny_config


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Path of a tiny base model, made once per architecture and dtype."""
    made: dict[tuple[str, str], Path] = {}

    def make(name: str, dtype: str = "float32") -> Path:
        if (name, dtype) not in made:
            made[name, dtype] = save_base(tiny_config(name), tmp_path_factory.mktemp(f"{name}-{dtype}"), dtype)
        return made[name, dtype]

    return make
