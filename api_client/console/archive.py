"""All outputs of a job as one tar stream of a known length: each file checked while it passes, their checksums last."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from api_client.contract.artifacts import arrived_changed
from api_client.contract.job import Artifact, Job, is_plain_name

CHECKSUMS: Final = "SHA256SUMS.tar.txt"
"""Checksums of what the stream holds, under a name that no output of a job has."""
_MODE: Final = 0o644


def uploaded(job: Job) -> list[Artifact]:
    """The outputs that lie in object storage, under names that are safe in an archive."""
    return [artifact for artifact in job.outputs if artifact.url and is_plain_name(artifact.name)]


def tar_size(artifacts: Sequence[Artifact]) -> int:
    """Bytes of the stream that :func:`tar_of` makes."""
    sizes = [artifact.size_bytes for artifact in artifacts] + [len(_checksums(artifacts))]
    names = [artifact.name for artifact in artifacts] + [CHECKSUMS]
    heads = sum(len(_head(name, size)) for name, size in zip(names, sizes, strict=True))
    return heads + sum(size + _padding(size) for size in sizes) + 2 * tarfile.BLOCKSIZE


def tar_of(artifacts: Sequence[Artifact], opened: Callable[[Artifact], Iterator[bytes]]) -> Iterator[bytes]:
    """The stream: every file, then :data:`CHECKSUMS`.

    Args:
        artifacts: From :func:`uploaded`.
        opened: Gives the bytes of one.

    Raises:
        PackagingError: ``download_failed`` where a file has another size or digest than was recorded; the stream ends
            there, short of its length, so that whoever reads it knows.
    """
    for artifact in artifacts:
        yield _head(artifact.name, artifact.size_bytes)
        digest, left = hashlib.sha256(), artifact.size_bytes
        for block in opened(artifact):
            left -= len(block)
            if left < 0:
                break
            digest.update(block)
            yield block
        if left or digest.hexdigest() != artifact.sha256:
            raise arrived_changed(artifact, digest.hexdigest())
        yield bytes(_padding(artifact.size_bytes))
    sums = _checksums(artifacts)
    yield _head(CHECKSUMS, len(sums)) + sums + bytes(_padding(len(sums)) + 2 * tarfile.BLOCKSIZE)


def _head(name: str, size_bytes: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size_bytes, _MODE
    return entry.tobuf(tarfile.PAX_FORMAT)


def _padding(size_bytes: int) -> int:
    return -size_bytes % tarfile.BLOCKSIZE


def _checksums(artifacts: Sequence[Artifact]) -> bytes:
    return "".join(f"{artifact.sha256}  {artifact.name}\n" for artifact in artifacts).encode()
