"""Bytes of safetensors files as tensors, without copying them.

Two ways: a mapping per tensor for base models, whose memory ends with the tensor, and one mapping per file for the many
small tensors of an adapter or overlay (each mapping costs a file descriptor and an entry in the kernel's table). All
mappings are copy on write: what is written to a tensor stays in this process.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.checkpoint.headers import TensorEntry

if TYPE_CHECKING:
    import torch


class FileIdentity(NamedTuple):
    """The same as long as a file is the one whose header was checked."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int


def file_identity(path: Path) -> FileIdentity:
    """Identity of the file at ``path`` now."""
    return _identity(path.stat())


def _identity(info: os.stat_result) -> FileIdentity:
    return FileIdentity(info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)


def check_file_unchanged(path: Path, identity: FileIdentity) -> None:
    """Refuse a file that is not the one whose header was read.

    Raises:
        PackagingError: ``base_model_invalid``.
    """
    try:
        _check(path, identity, path.stat())
    except OSError as error:
        raise _unreadable(path, error) from error


def map_tensor(entry: TensorEntry, identity: FileIdentity) -> torch.Tensor:
    """Map the bytes of ``entry`` alone.

    Raises:
        PackagingError: ``base_model_invalid`` where the file changed since its header was read, or torch lacks the
            dtype.
    """
    skip = entry.start % mmap.ALLOCATIONGRANULARITY
    mapped: mmap.mmap | bytes = b""
    if entry.size_bytes:
        mapped = _map(entry.file, identity, skip + entry.size_bytes, entry.start - skip)
    return _tensor(mapped, skip, entry)


@dataclass(frozen=True)
class StoredTensors:
    """The tensors of a checkpoint as they lie in its files, each mapped when it is read. Thread-safe.

    Attributes:
        entries: Name -> entry.
        identities: Every file whose header was read.
    """

    entries: Mapping[str, TensorEntry]
    identities: Mapping[Path, FileIdentity]

    def read(self, name: str) -> torch.Tensor:
        """Map one tensor.

        Raises:
            PackagingError: As :func:`map_tensor`.
        """
        entry = self.entries[name]
        return map_tensor(entry, self.identities[entry.file])

    def beside(self, others: StoredTensors) -> StoredTensors:
        """These and those of another checkpoint; of two with one name, the one here."""
        return StoredTensors({**others.entries, **self.entries}, {**others.identities, **self.identities})

    def check_unchanged(self) -> None:
        """Refuse files that somebody has written to since their headers were read.

        Raises:
            PackagingError: ``base_model_invalid`` naming the file.
        """
        for path, identity in self.identities.items():
            check_file_unchanged(path, identity)


class MappedFile:
    """One file mapped as a whole, when it is first read. Thread-safe."""

    def __init__(self, path: Path, identity: FileIdentity) -> None:
        self._path = path
        self._identity = identity
        self._lock = threading.Lock()
        self._mapped: mmap.mmap | None = None

    def read(self, entry: TensorEntry) -> torch.Tensor:
        """The tensor of ``entry``, a view of the mapping.

        Raises:
            PackagingError: As :func:`map_tensor`.
        """
        with self._lock:
            if self._mapped is None:
                self._mapped = _map(self._path, self._identity, self._identity.size_bytes, 0)
        return _tensor(self._mapped, entry.start, entry)


def _map(path: Path, identity: FileIdentity, length: int, offset: int) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            _check(path, identity, os.fstat(file.fileno()))
            return mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=offset)
    except OSError as error:
        raise _unreadable(path, error) from error


def _check(path: Path, identity: FileIdentity, info: os.stat_result) -> None:
    if identity != _identity(info):
        raise PackagingError(ErrorCode.BASE_MODEL_INVALID, f"{path} changed while it was being read")


def _unreadable(path: Path, error: OSError) -> PackagingError:
    return PackagingError(ErrorCode.BASE_MODEL_INVALID, f"{path} cannot be read: {error.strerror}")


def _tensor(mapped: mmap.mmap | bytes, offset: int, entry: TensorEntry) -> torch.Tensor:
    import torch

    dtype = torch_dtypes().get(entry.dtype)
    if dtype is None:
        raise PackagingError(
            ErrorCode.BASE_MODEL_INVALID,
            f"{entry.file}: tensor {entry.name!r} has the unsupported dtype {entry.dtype}",
        )
    if entry.size_bytes == 0:
        return torch.empty(entry.shape, dtype=dtype)
    flat = torch.frombuffer(mapped, dtype=torch.uint8, offset=offset, count=entry.size_bytes)
    if offset % dtype.itemsize:
        flat = flat.clone()  # a file whose header is not padded leaves its tensors unaligned
    return flat.view(dtype).reshape(entry.shape)


def torch_dtypes() -> dict[str, torch.dtype]:
    """Safetensors dtype name -> torch dtype, for those that torch has as whole bytes."""
    import torch

    return {
        "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16, "I16": torch.int16,
        "U32": torch.uint32, "I32": torch.int32, "U64": torch.uint64, "I64": torch.int64,
        "F8_E5M2": torch.float8_e5m2, "F8_E4M3": torch.float8_e4m3fn, "F8_E8M0": torch.float8_e8m0fnu,
        "F8_E5M2FNUZ": torch.float8_e5m2fnuz, "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
        "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
        "C64": torch.complex64,
    }  # fmt: skip
