"""The tar stream of a job's outputs: of the length that was said, read by tar, broken off where a file has changed."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator

import pytest

from api_client.console.archive import CHECKSUMS, tar_of, tar_size
from api_client.contract.errors import PackagingError
from api_client.contract.job import Artifact, ArtifactKind

FILES = {"merged_model.gguf": b"GGUF" * 5000, "模型-Q4_K_M.gguf": b"", f"{'n' * 140}.json": b"{}"}


def artifact(name: str, data: bytes) -> Artifact:
    digest = hashlib.sha256(data).hexdigest()
    url = f"s3://bucket/{name}"
    return Artifact(name=name, path=f"/x/{name}", url=url, kind=ArtifactKind.GGUF, size_bytes=len(data), sha256=digest)


ARTIFACTS = [artifact(name, data) for name, data in FILES.items()]


def opened(one: Artifact) -> Iterator[bytes]:
    data = FILES[one.name]
    yield from (data[at : at + 700] for at in range(0, len(data), 700))


def test_it_is_as_long_as_it_says_and_holds_every_file_and_its_checksum() -> None:
    stream = b"".join(tar_of(ARTIFACTS, opened))
    assert len(stream) == tar_size(ARTIFACTS)
    with tarfile.open(fileobj=io.BytesIO(stream)) as archive:
        files = {member.name: archive.extractfile(member) for member in archive}
        held = {name: file.read() for name, file in files.items() if file is not None}
    sums = held.pop(CHECKSUMS).decode()
    assert held == FILES
    assert sums.splitlines() == [f"{hashlib.sha256(data).hexdigest()}  {name}" for name, data in FILES.items()]


@pytest.mark.parametrize("changed", [b"GGUF" * 4999 + b"gguf", b"GGUF", b"GGUF" * 5001])
def test_a_file_that_arrives_changed_breaks_it_off(changed: bytes) -> None:
    passed: list[bytes] = []
    with pytest.raises(PackagingError, match=r"merged_model\.gguf arrived changed"):
        passed.extend(tar_of(ARTIFACTS, lambda _: iter([changed])))
    assert sum(map(len, passed)) < tar_size(ARTIFACTS)
