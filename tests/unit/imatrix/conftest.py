from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.unit.imatrix.imatrix_models import TEXT, save_model, save_recorded_model
from worker.models.checkpoint import open_base_model
from worker.models.imatrix.calibration import Calibration
from worker.models.imatrix.compute import CalibrationChunks, ComputedImatrix, compute_imatrix


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices of a few thousand numbers are slower with many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Directory of a tiny model, made once per architecture."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            save = save_recorded_model if name == "recorded" else lambda path: save_model(name, path)
            made[name] = save(tmp_path_factory.mktemp(name))
        return made[name]

    return make


@pytest.fixture(scope="session")
def computed(model_dir: Callable[[str], Path]) -> Callable[..., ComputedImatrix]:
    """The matrix of a tiny model over ten chunks of 32 tokens, computed once per architecture and way of running."""
    made: dict[tuple[str, bool], ComputedImatrix] = {}

    def compute(name: str, *, layered: bool = True) -> ComputedImatrix:
        if (name, layered) not in made:
            directory = model_dir(name)
            made[name, layered] = compute_imatrix(
                open_base_model(directory),
                None,
                CalibrationChunks(Calibration("test", TEXT), directory, 10, 32),
                device="cpu",
                layered=layered,
            )
        return made[name, layered]

    return compute
