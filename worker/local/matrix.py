"""An importance matrix for a kept GGUF file, computed with the model's directory, as a job computes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.fit import AnyQuantType
from api_client.contract.outputs import MATRIX, OutputNames
from api_client.contract.quant_types import QUANT_TYPES, QuantType
from api_client.disk import failed_write
from config.roots import Roots
from worker.models.checkpoint import open_base_model
from worker.models.convert.tokenizer import find_tokenizer
from worker.models.imatrix.calibration import load_calibration
from worker.models.imatrix.compute import CalibrationChunks, compute_imatrix
from worker.models.imatrix.gguf_form import write_imatrix
from worker.models.imatrix.merge import load_merged
from worker.models.quantize.imatrix_data import ImatrixData
from worker.models.quantize.source import whole_stem
from worker.setting import WorkSetting


@dataclass(frozen=True)
class MatrixSource:
    """What a matrix is computed from.

    Attributes:
        model: The model's directory.
        calibration: A text; the shipped one where None.
        chunks: How many chunks of it; all where None.
    """

    model: Path | None
    calibration: Path | None
    chunks: int | None

    def check(self, *, given: bool) -> None:
        """Refuse what could have no effect.

        Args:
            given: Whether a matrix is given.

        Raises:
            PackagingError: ``request_invalid``.
        """
        flag = "--calibration" if self.calibration is not None else "--chunks" if self.chunks is not None else None
        if flag is not None and given:
            raise PackagingError(
                ErrorCode.REQUEST_INVALID,
                f"--imatrix gives a matrix, and {flag} asks to compute one",
                remedy=f"Leave out --imatrix or {flag}.",
                fields={"field": "imatrix.calibration"},
            )
        if flag is not None and self.model is None:
            raise PackagingError(
                ErrorCode.REQUEST_INVALID,
                f"{flag} is of use only where the model can be run",
                remedy="Give the model's directory with --model, or a matrix that exists with --imatrix.",
                fields={"field": "imatrix.calibration"},
            )

    def is_wanted(self, kinds: Sequence[AnyQuantType]) -> bool:
        """Whether to compute one: a text is given for it, or a type needs it and the model is there."""
        asked = self.calibration is not None or self.chunks is not None
        needed = any(isinstance(kind, QuantType) and QUANT_TYPES[kind].needs_imatrix for kind in kinds)
        return self.model is not None and (asked or needed)


def computed_matrix(
    by: MatrixSource, source: Path, output_dir: Path, overwrite: bool, setting: WorkSetting
) -> ImatrixData:
    """Compute the matrix of ``source``, keep it in ``output_dir`` under a job's name for it, and load it from there.

    Raises:
        PackagingError: ``output_exists`` where one of an earlier call lies there, and as computing does.
        StopRequested: as asked; nothing was written.
    """
    assert by.model is not None, "is_wanted says so"
    path = output_dir / OutputNames(model=whole_stem(source), adapter="").name(MATRIX)
    if path.exists() and not overwrite:
        raise PackagingError(
            ErrorCode.OUTPUT_EXISTS,
            f"{path} lies there already",
            remedy=f"Take it with --imatrix {path}, or compute it anew with --overwrite.",
            fields={"path": str(path)},
        )
    model = by.model.expanduser().absolute()
    text = load_calibration(by.calibration.expanduser().absolute() if by.calibration is not None else None)
    tokenizer = find_tokenizer(None, model, None, allowed_roots=Roots.anywhere())
    base = open_base_model(model, allowed_roots=Roots.anywhere())
    chunks = CalibrationChunks(text, tokenizer.directory, by.chunks)
    computed = compute_imatrix(base, None, chunks, setting=setting)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        write_imatrix(path, computed.sums)
    except OSError as error:
        raise failed_write(path, error) from error
    return load_merged([path])
