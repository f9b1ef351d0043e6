"""The file ``sensitivity.gguf``: read and written. GGUF, little-endian, with these metadata and tensors.

========================= ======== ====================================================================
``general.type``          string   ``sensitivity``
``sensitivity.version``   uint32   1
``sensitivity.dataset``   string   name of the text
``sensitivity.text``      string   SHA-256 of the token ids that were run (little-endian int64)
``sensitivity.tokens``    uint32   how many tokens were run
``sensitivity.chunk_size``uint32   tokens in a chunk
``sensitivity.model``     string   fingerprint of the base model's headers
``sensitivity.seed``      uint32   of the labels that were drawn
``sensitivity.matrix``    uint32   chunks of the text that the inputs were gathered on
``sensitivity.matrix_chunk_size``
                          uint32   tokens in such a chunk
========================= ======== ====================================================================

For each GGUF tensor ``NAME`` of ``m`` matrices (experts), in the order of the names: ``NAME.in_sum2`` (float32, ne
``[row length, m]``) and ``NAME.counts`` (float32, ne ``[1, m]``) as in an importance matrix, and ``NAME.out_grad2``
(float32, ne ``[rows, m]``), absent where the model could be run forward only. What they mean stands in
:mod:`worker.models.sensitivity.sums`. It is no importance matrix to llama-quantize, which would take an embedding's
gradients for inputs: the keys that it asks for are missing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.gguf.metadata import get_value, string_value, uint32_value
from worker.models.gguf.reader import GGUFFile, open_gguf
from worker.models.gguf.tensors import TensorSpec, normal_shape
from worker.models.gguf.types import GGMLType
from worker.models.gguf.writer import write_gguf
from worker.models.imatrix.sums import TensorSums
from worker.models.sensitivity.sums import Sensitivity, TensorSensitivity

VERSION = 1
_TYPE = "sensitivity"
_SUMS, _COUNTS, _GRADIENTS = ".in_sum2", ".counts", ".out_grad2"


def write_sensitivity(path: Path, sensitivity: Sensitivity) -> None:
    """Write a file, whole or not at all.

    Raises:
        OSError: if writing fails; nothing is left behind then.
    """
    metadata = {
        "general.type": string_value(_TYPE),
        "sensitivity.version": uint32_value(VERSION),
        "sensitivity.dataset": string_value(sensitivity.dataset),
        "sensitivity.text": string_value(sensitivity.text_sha256),
        "sensitivity.tokens": uint32_value(sensitivity.tokens),
        "sensitivity.chunk_size": uint32_value(sensitivity.chunk_tokens),
        "sensitivity.model": string_value(sensitivity.model),
        "sensitivity.seed": uint32_value(sensitivity.seed),
        "sensitivity.matrix": uint32_value(sensitivity.matrix_chunks[0]),
        "sensitivity.matrix_chunk_size": uint32_value(sensitivity.matrix_chunks[1]),
    }
    tensors: list[tuple[TensorSpec, NDArray[np.generic]]] = []
    for name, entry in sorted(sensitivity.entries.items()):
        parts = {_SUMS: entry.inputs.in_sum2, _COUNTS: entry.inputs.counts[:, np.newaxis], _GRADIENTS: entry.out_grad2}
        for suffix, values in parts.items():
            if values is not None:
                shape = normal_shape(reversed(values.shape))
                tensors.append((TensorSpec(name + suffix, shape, GGMLType.F32), values.astype("<f4")))
    write_gguf(path, metadata, tensors)


def read_sensitivity(path: Path) -> Sensitivity:
    """Read a file.

    Raises:
        PackagingError: ``sensitivity_invalid``.
    """
    try:
        file = open_gguf(path)
    except PackagingError as error:
        raise invalid(path.name, error.message) from error
    with file:
        if get_value(file.metadata, "general.type") != _TYPE:
            raise invalid(path.name, "is GGUF but holds no sensitivities")
        names = [tensor.name.removesuffix(_SUMS) for tensor in file.tensors if tensor.name.endswith(_SUMS)]
        if not names:
            raise invalid(path.name, "holds no entries")
        sensitivity = Sensitivity(
            dataset=_text(file, path.name, "dataset"),
            text_sha256=_text(file, path.name, "text"),
            tokens=_count(file, path.name, "tokens"),
            chunk_tokens=max(1, _count(file, path.name, "chunk_size")),
            model=_text(file, path.name, "model"),
            seed=_count(file, path.name, "seed"),
            matrix_chunks=(_count(file, path.name, "matrix"), _count(file, path.name, "matrix_chunk_size")),
            entries={name: _entry(file, path.name, name) for name in sorted(names)},
        )
        if _count(file, path.name, "version") != VERSION:
            raise invalid(path.name, "was written by another version")
    return sensitivity


def invalid(file: str, fact: str) -> PackagingError:
    """A ``sensitivity_invalid`` that names the file."""
    return PackagingError(ErrorCode.SENSITIVITY_INVALID, f"{file}: {fact}", fields={"file": file})


def _text(file: GGUFFile, name: str, key: str) -> str:
    value = get_value(file.metadata, f"sensitivity.{key}")
    if not isinstance(value, str):
        raise invalid(name, f"sensitivity.{key} is {value!r}")
    return value


def _count(file: GGUFFile, name: str, key: str) -> int:
    value = get_value(file.metadata, f"sensitivity.{key}")
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise invalid(name, f"sensitivity.{key} is {value!r}")
    return value


def _entry(file: GGUFFile, file_name: str, name: str) -> TensorSensitivity:
    counts = _floats(file, file_name, name + _COUNTS, 1)[:, 0]
    sums = _floats(file, file_name, name + _SUMS, None, len(counts))
    gradients = None
    if name + _GRADIENTS in file.by_name:
        gradients = _floats(file, file_name, name + _GRADIENTS, None, len(counts))
    return TensorSensitivity(TensorSums(sums, counts), gradients)


def _floats(
    file: GGUFFile, file_name: str, name: str, columns: int | None, matrices: int | None = None
) -> NDArray[np.float32]:
    """Values ``(matrices, columns)``; finite and not negative."""
    tensor = file.by_name.get(name)
    if tensor is None or tensor.type is not GGMLType.F32:
        raise invalid(file_name, f"{name} is missing or not F32")
    values = file.tensor_bytes(tensor).reshape(-1).view("<f4").astype(np.float32)
    rows = matrices if matrices is not None else values.size // (columns or 1)
    if not values.size or not rows or values.size % rows or not (np.isfinite(values) & (values >= 0)).all():
        raise invalid(file_name, f"{name} has values that are missing, negative or not finite")
    return values.reshape(rows, -1)
