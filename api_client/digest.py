"""SHA-256 of files: the one loop that reads a file for its digest, for clients and workers alike."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

CHUNK_BYTES = 4 * 2**20
"""Large enough that hashing, which releases the interpreter lock, and not Python sets the pace."""


def _never(done: int) -> None:
    """Let the reading go on."""


def sha256_file(path: Path, *, before_chunk: Callable[[int], None] = _never) -> str:
    """SHA-256 of a file, in hexadecimal; one chunk of memory.

    Args:
        path: The file.
        before_chunk: Called before each chunk with the bytes that were read so far; what it raises ends the reading.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    hash_range(path, digest.update, before_chunk=before_chunk)
    return digest.hexdigest()


def hash_range(
    path: Path,
    update: Callable[[memoryview], object],
    offset: int = 0,
    size_bytes: int | None = None,
    *,
    before_chunk: Callable[[int], None] = _never,
) -> int:
    """Feed a part of a file to a hash: up to its end where ``size_bytes`` is not given or reaches beyond.

    Returns:
        How many bytes were read.

    Raises:
        OSError: it cannot be read.
    """
    buffer = memoryview(bytearray(CHUNK_BYTES if size_bytes is None else min(CHUNK_BYTES, max(size_bytes, 1))))
    done = 0
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        while size_bytes is None or done < size_bytes:
            before_chunk(done)
            wanted = len(buffer) if size_bytes is None else min(len(buffer), size_bytes - done)
            count = file.readinto(buffer[:wanted])
            if not count:
                break
            update(buffer[:count])
            done += count
    return done
