"""Write one safetensors file, tensor by tensor, so that it appears complete or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from worker.models.checkpoint.mapping import torch_dtypes
from worker.storage.atomic import AtomicFile

if TYPE_CHECKING:
    import torch


def write_safetensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> int:
    """Write ``tensors`` in their order; returns the file's size in bytes.

    The file is written under a temporary name beside ``path``, synced and renamed. Tensors that share memory are
    written each on its own; at most one is copied at a time.

    Raises:
        PackagingError: ``disk_space_insufficient``, ``output_dir_not_writable``; the temporary file is gone then.
    """
    names = {dtype: name for name, dtype in torch_dtypes().items()}
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)  # keeps the data aligned
    with AtomicFile(path) as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for tensor in tensors.values():
            _write_tensor(file, tensor)
    return 8 + len(raw) + offset


def _write_tensor(file: BinaryIO, tensor: torch.Tensor) -> None:
    import torch

    flat = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
    file.write(flat.numpy().data)
