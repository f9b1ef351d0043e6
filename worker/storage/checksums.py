"""SHA-256 of files and parts of files, and the ``SHA256SUMS`` format of coreutils' ``sha256sum``."""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from api_client import digest
from worker.stop import ShouldStop, StopRequested
from worker.storage.held import read_plain

_SUM = re.compile(r"(?P<escaped>\\?)(?P<digest>[0-9a-f]{64}) [ *](?P<name>[^\r]+)")
"""A line; ``*`` stands before the name of a file that was read as binary, which makes no difference here."""


def sha256_file(path: Path, *, should_stop: ShouldStop | None = None) -> str:
    """SHA-256 of a file, as :func:`api_client.digest.sha256_file`, unless a stage is to stop.

    Raises:
        StopRequested: asked to stop.
        OSError: it cannot be read.
    """
    return digest.sha256_file(path, before_chunk=_ask(should_stop))


def sha256_range(path: Path, offset: int, size_bytes: int) -> bytes:
    """Raw SHA-256 of ``size_bytes`` of a file from ``offset`` on."""
    sha256 = hashlib.sha256()
    hash_range(path, sha256.update, offset, size_bytes)
    return sha256.digest()


def hash_range(
    path: Path,
    update: Callable[[memoryview], object],
    offset: int = 0,
    size_bytes: int | None = None,
    *,
    should_stop: ShouldStop | None = None,
) -> None:
    """Feed a part of a file to a hash, as :func:`api_client.digest.hash_range`, unless a stage is to stop.

    Raises:
        StopRequested: asked to stop.
        OSError: it cannot be read.
    """
    digest.hash_range(path, update, offset, size_bytes, before_chunk=_ask(should_stop))


def _ask(should_stop: ShouldStop | None) -> Callable[[int], None]:
    def ask(_: int) -> None:
        if should_stop is not None and should_stop():
            raise StopRequested

    return ask


def format_checksums(sums: Mapping[str, str]) -> str:
    """Content of ``SHA256SUMS``: a line per file name, sorted; odd names escaped as ``sha256sum`` does."""
    return "".join(_line(name, digest) for name, digest in sorted(sums.items()))


def read_checksums(path: Path) -> str:
    """Content of a ``SHA256SUMS``, empty where there is no such file; to be encoded with ``surrogateescape`` again."""
    try:
        return read_plain(path).decode("utf-8", "surrogateescape")
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            return ""
        raise


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
    return "".join(plain.get(next(characters, ""), "") if character == "\\" else character for character in characters)
