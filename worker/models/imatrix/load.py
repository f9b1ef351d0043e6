"""Load an importance matrix, whichever of its two forms it has."""

from __future__ import annotations

from pathlib import Path

from worker.models.gguf.reader import MAGIC
from worker.models.imatrix.gguf_form import read_gguf_form
from worker.models.imatrix.legacy_form import read_legacy_form
from worker.models.imatrix.sums import ImatrixSums, invalid, mean_squares
from worker.models.quantize.imatrix_data import ImatrixData


def load_imatrix(path: Path) -> ImatrixData:
    """Load a matrix as quantization uses it: mean squares per input channel. The file may come from anybody.

    Raises:
        PackagingError: ``imatrix_invalid`` for a damaged or foreign file, and for NaN, infinite or negative values.
    """
    return mean_squares(read_imatrix(path), path.name)


def read_imatrix(path: Path) -> ImatrixSums:
    """Read the sums and counts as they stand in the file.

    Raises:
        PackagingError: ``imatrix_invalid``.
    """
    try:
        if not path.is_file():  # opening a FIFO would block
            raise invalid(path.name, f"{path} is not a file")
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
    except OSError as error:
        raise invalid(path.name, f"cannot be opened: {error.strerror}") from error
    return read_gguf_form(path) if magic == MAGIC else read_legacy_form(path)
