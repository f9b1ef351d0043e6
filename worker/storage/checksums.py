"""SHA-256 of files and parts of files, and the ``SHA256SUMS`` format of coreutils' ``sha256sum``."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from worker.stop import ShouldStop, StopRequested

_SUM = re.compile(r"(?P<escaped>\\?)(?P<digest>[0-9a-f]{64}) [ *](?P<name>[^\r]+)")
"""A line; ``*`` stands before the name of a file that was read as binary, which makes no difference here."""

CHUNK_BYTES = 4 * 2**20
"""Large enough that hashing, which releases the interpreter lock, and not Python sets the pace."""


def sha256_file(
    path: Path, *, report: Callable[[int], None] | None = None, should_stop: ShouldStop | None = None
) -> str:
    """SHA-256 of a file, in hexadecimal; one chunk of memory.

    Args:
        path: The file.
        report: Called with the bytes done so far.
        should_stop: Asked before each chunk.

    Raises:
        StopRequested: asked to stop.
    """
    digest = hashlib.sha256()
    hash_range(path, digest.update, report=report, should_stop=should_stop)
    return digest.hexdigest()


def sha256_range(path: Path, offset: int, size_bytes: int) -> bytes:
    """Raw SHA-256 of ``size_bytes`` of a file from ``offset`` on."""
    digest = hashlib.sha256()
    hash_range(path, digest.update, offset, size_bytes)
    return digest.digest()


def hash_range(
    path: Path,
    update: Callable[[memoryview], object],
    offset: int = 0,
    size_bytes: int | None = None,
    *,
    report: Callable[[int], None] | None = None,
    should_stop: ShouldStop | None = None,
) -> None:
    """Feed a part of a file to a hash: up to its end where ``size_bytes`` is not given or reaches beyond.

    Raises:
        StopRequested: asked to stop.
    """
    buffer = memoryview(bytearray(CHUNK_BYTES if size_bytes is None else min(CHUNK_BYTES, max(size_bytes, 1))))
    done = 0
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        while size_bytes is None or done < size_bytes:
            if should_stop is not None and should_stop():
                raise StopRequested
            wanted = len(buffer) if size_bytes is None else min(len(buffer), size_bytes - done)
            count = file.readinto(buffer[:wanted])
            if not count:
                break
            update(buffer[:count])
            done += count
            if report is not None:
                report(done)


def format_checksums(sums: Mapping[str, str]) -> str:
    """Content of ``SHA256SUMS``: a line per file name, sorted; odd names escaped as ``sha256sum`` does."""
    return "".join(_line(name, digest) for name, digest in sorted(sums.items()))


def read_checksums(path: Path) -> str:
    """Content of a ``SHA256SUMS``, empty where there is none; to be encoded with ``surrogateescape`` again."""
    try:
        return path.read_bytes().decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return ""


def parse_checksums(text: str) -> dict[str, str]:
    """File name to digest; lines that are not of the format are passed over."""
    sums = {}
    for line in text.split("\n"):
        match = _SUM.fullmatch(line)
        if match:
            sums[_unescape(match["name"]) if match["escaped"] else match["name"]] = match["digest"]
    return sums


def _line(name: str, digest: str) -> str:
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{'' if escaped == name else chr(92)}{digest}  {escaped}\n"


def _unescape(name: str) -> str:
    plain = {"\\": "\\", "n": "\n", "r": "\r"}
    characters = iter(name)
    return "".join(plain.get(next(characters, ""), "") if each == "\\" else each for each in characters)
