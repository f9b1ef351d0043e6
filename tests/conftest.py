"""What every test needs, whoever started it."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile

import pytest

# a run started in the background of a script ignores Ctrl-C, and so would every process that the tests start
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Have all workers and commands of a run share their compiled kernels, and compile none before a job needs it."""
    os.environ["TRAINPACK_WARM_UP"] = "false"
    if "TRAINPACK_KERNEL_CACHE_DIR" not in os.environ:  # processes of pytest-xdist have it of the one that began them
        os.environ["TRAINPACK_KERNEL_CACHE_DIR"] = kernels = tempfile.mkdtemp(prefix="trainpack-test-kernels-")
        config.add_cleanup(lambda: shutil.rmtree(kernels, ignore_errors=True))


_LONGEST_FIRST = ("e2e", "integration")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long files before short ones: one that begins last keeps one process busy while the others have nothing."""
    items.sort(key=lambda item: next((n for n, name in enumerate(_LONGEST_FIRST) if name in item.path.parts), 2))
