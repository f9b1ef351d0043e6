"""Adds what ggml makes of the recorded inputs for types that ``blocks.json`` does not have yet.

``python -m tests.golden.record_blocks LIBGGML_BASE`` takes the path of the library, which must be a plain x86-64 build
of llama.cpp b11434.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.unit.kernels.golden_blocks import FOLDER
from worker.models.gguf.types import GGMLType, row_bytes
from worker.models.kernels import QUANTIZED_TYPES

FIRST_ROWS = 4


def quantized(
    library: ctypes.CDLL, ggml_type: GGMLType, rows: NDArray[np.float32], weights: NDArray[np.float32] | None
) -> NDArray[np.uint8]:
    """The bytes of ``ggml_quantize_chunk``."""
    out = np.zeros((rows.shape[0], row_bytes(ggml_type, rows.shape[1])), np.uint8)
    library.ggml_quantize_chunk(
        ctypes.c_int(int(ggml_type)),
        ctypes.c_void_p(rows.ctypes.data),
        ctypes.c_void_p(out.ctypes.data),
        ctypes.c_int64(0),
        ctypes.c_int64(rows.shape[0]),
        ctypes.c_int64(rows.shape[1]),
        ctypes.c_void_p(None if weights is None else weights.ctypes.data),
    )
    return out


def main() -> None:
    library = ctypes.CDLL(sys.argv[1])
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    record: dict[str, Any] = json.loads((FOLDER / "blocks.json").read_text())
    with np.load(FOLDER / "blocks.npz") as stored:
        arrays = dict(stored)
    for ggml_type in sorted(QUANTIZED_TYPES - {GGMLType[name] for name in record["type_ids"]}):
        record["type_ids"][ggml_type.name] = int(ggml_type)
        for name in record["inputs"]:
            rows = np.ascontiguousarray(arrays[f"in/{name}"])
            if rows.shape[1] % ggml_type.block_length:
                continue
            for matrix in (None, "act"):
                weights = None if matrix is None else np.ascontiguousarray(arrays[f"imatrix/{matrix}/{rows.shape[1]}"])
                out = quantized(library, ggml_type, rows, weights)
                arrays[f"out/{ggml_type.name}/{name}/{matrix or 'none'}"] = out.reshape(-1)[: out.shape[1] * FIRST_ROWS]
                digest = hashlib.sha256(out.tobytes()).hexdigest()
                rows_cols = {"rows": rows.shape[0], "cols": rows.shape[1]}
                case = {"type": ggml_type.name, "input": name, "imatrix": matrix, **rows_cols, "sha256": digest}
                record["cases"].append({**case, "bytes": out.size, "valid": True})
    (FOLDER / "blocks.json").write_text(json.dumps(record, separators=(",", ":")))
    np.savez_compressed(FOLDER / "blocks.npz", **arrays)


if __name__ == "__main__":
    main()
