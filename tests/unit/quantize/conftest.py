"""A small model to quantize, made once per module."""

from pathlib import Path

import pytest

from tests.golden.models import build_model


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden model of BF16 weights with rows of 288."""
    return build_model(tmp_path_factory.mktemp("source") / "tied.gguf", "tied")
