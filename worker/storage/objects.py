"""What the storage says of an object, and whether bytes at hand are that object's: the comparison of checksums.

A full checksum covers the whole object. A composite one, ``BASE64-N`` or an ETag ``MD5-N``, is the checksum of the
checksums of N parts; given the size of the first part it can be computed from the bytes as well. (AWS: "Checking object
integrity in Amazon S3", "ETag".)
"""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from worker.stop import ShouldStop
from worker.storage.checksums import hash_range

SHA256_METADATA = "trainpack-sha256"
"""User metadata in which trainpack notes the SHA-256 of what it uploads, in hexadecimal."""


@dataclass(frozen=True)
class ObjectInfo:
    """One object as listed.

    Attributes:
        key: Its key.
        size_bytes: Its size.
        etag: Changes when the object does; with quotes, as sent.
    """

    key: str
    size_bytes: int
    etag: str


@dataclass(frozen=True)
class Expectation:
    """A checksum that the bytes of an object must have.

    Attributes:
        algorithm: ``sha256``, ``sha1``, ``md5`` or ``crc32``.
        digest: The raw checksum.
        parts: Number of parts of a composite checksum; 0 for a full one.
    """

    algorithm: str
    digest: bytes
    parts: int = 0

    def holds_for(
        self, path: Path, part_size_bytes: int | None = None, should_stop: ShouldStop | None = None
    ) -> bool | None:
        """Whether a file has this checksum; ``None`` where that cannot be told, for want of the part size.

        Raises:
            StopRequested: asked to stop.
        """
        if not self.parts:
            return _digest(path, self.algorithm, 0, None, should_stop) == self.digest
        size = path.stat().st_size
        if not part_size_bytes or -(-size // part_size_bytes) != self.parts:
            return None
        offsets = range(0, size, part_size_bytes)
        return self.holds_for_parts([_digest(path, self.algorithm, at, part_size_bytes, should_stop) for at in offsets])

    def holds_for_parts(self, digests: list[bytes]) -> bool:
        """Whether parts with these checksums make this composite one."""
        return len(digests) == self.parts and hashlib.new(self.algorithm, b"".join(digests)).digest() == self.digest


def expectations(head: Mapping[str, Any]) -> list[Expectation]:
    """What an answer to HeadObject says about the bytes: full checksums first, stronger ones first; maybe nothing."""
    expected = []
    noted = head.get("Metadata", {}).get(SHA256_METADATA, "")
    if re.fullmatch("[0-9a-f]{64}", noted):
        expected.append(Expectation("sha256", bytes.fromhex(noted)))
    for algorithm in ("sha256", "sha1", "crc32"):
        value, _, parts = str(head.get(f"Checksum{algorithm.upper()}", "")).partition("-")
        digest = _decoded(value, algorithm)
        if digest is None or (parts and (algorithm == "crc32" or not parts.isdecimal())):
            continue
        if parts or algorithm == "crc32" or not _may_be_composite(head):
            expected.append(Expectation(algorithm, digest, int(parts or 0)))
    tag = re.fullmatch('"([0-9a-f]{32})(?:-([0-9]+))?"', str(head.get("ETag", "")))
    encrypted = head.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerAlgorithm" in head
    if tag and not encrypted:  # under KMS or customer keys the tag is no checksum
        expected.append(Expectation("md5", bytes.fromhex(tag[1]), int(tag[2] or 0)))
    return sorted(expected, key=lambda expectation: expectation.parts > 0)


def _decoded(value: str, algorithm: str) -> bytes | None:
    """A checksum as it is sent; ``None`` of anything else, for not every server sends what AWS would."""
    try:
        digest = base64.b64decode(value, validate=True)
    except ValueError:
        return None
    return digest if len(digest) == len(_HASHES[algorithm]().digest()) else None


def _may_be_composite(head: Mapping[str, Any]) -> bool:
    """Whether a checksum without a number of parts may yet be one of parts.

    Some servers leave the number out (getmoto/moto#8762); AWS has no full SHA of what came in parts, and says so where
    another server's is full.
    """
    kind = str(head.get("ChecksumType", ""))
    if kind:
        return kind != "FULL_OBJECT"
    return "-" in str(head.get("ETag", ""))


class _Hash(Protocol):
    def update(self, data: memoryview, /) -> None: ...

    def digest(self) -> bytes: ...


class _Crc32:
    def __init__(self) -> None:
        self._value = 0

    def update(self, data: memoryview, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


_HASHES: dict[str, Callable[[], _Hash]] = {
    "sha256": hashlib.sha256,
    "sha1": lambda: hashlib.sha1(usedforsecurity=False),
    "md5": lambda: hashlib.md5(usedforsecurity=False),
    "crc32": _Crc32,
}


def _digest(path: Path, algorithm: str, offset: int, size_bytes: int | None, should_stop: ShouldStop | None) -> bytes:
    digest = _HASHES[algorithm]()
    hash_range(path, digest.update, offset, size_bytes, should_stop=should_stop)
    return digest.digest()
