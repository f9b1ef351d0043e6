import base64
import hashlib
import zlib
from pathlib import Path
from typing import Any

import pytest

from worker.storage.objects import SHA256_METADATA, Expectation, expectations

DATA = b"0123456789"
MD5 = hashlib.md5(DATA)
FULL_SHA256 = base64.b64encode(hashlib.sha256(DATA).digest()).decode()


def parts_digest(algorithm: str, step: int) -> bytes:
    pieces = [DATA[at : at + step] for at in range(0, len(DATA), step)]
    return hashlib.new(algorithm, b"".join(hashlib.new(algorithm, piece).digest() for piece in pieces)).digest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x"
    path.write_bytes(DATA)
    return path


def test_a_plain_tag_is_an_md5_and_one_with_a_count_is_composite() -> None:
    assert expectations({"ETag": f'"{MD5.hexdigest()}"'}) == [Expectation("md5", MD5.digest())]
    assert expectations({"ETag": f'"{MD5.hexdigest()}-3"'}) == [Expectation("md5", MD5.digest(), 3)]


@pytest.mark.parametrize(
    "head",
    [
        {},
        {"ETag": '"not-a-digest"'},
        {"ETag": f'"{"a" * 32}"', "ServerSideEncryption": "aws:kms"},
        {"ETag": f'"{"a" * 32}"', "SSECustomerAlgorithm": "AES256"},
        {"ChecksumCRC32": "AAAAAA==-2"},
        {"Metadata": {SHA256_METADATA: "zz"}},
        {"ChecksumSHA256": "not base64"},
        {"ChecksumSHA256": "AAAA"},
        {"ChecksumSHA256": FULL_SHA256 + "-two"},
        {"ChecksumSHA256": FULL_SHA256, "ChecksumType": "COMPOSITE"},
        {"ChecksumSHA256": FULL_SHA256, "ETag": '"moto-2"'},
        {"Metadata": {"sha256": "a" * 64}},
    ],
)
def test_what_is_no_checksum_of_the_bytes_is_not_taken_for_one(head: dict[str, Any]) -> None:
    assert expectations(head) == []


def test_full_checksums_come_before_composite_ones_and_strong_before_weak() -> None:
    head = {
        "ETag": f'"{"a" * 32}"',
        "ChecksumSHA256": FULL_SHA256 + "-2",
        "ChecksumCRC32": base64.b64encode(zlib.crc32(DATA).to_bytes(4, "big")).decode(),
        "Metadata": {SHA256_METADATA: "b" * 64},
    }
    assert [(each.algorithm, each.parts) for each in expectations(head)] == [
        ("sha256", 0),
        ("crc32", 0),
        ("md5", 0),
        ("sha256", 2),
    ]


@pytest.mark.parametrize(
    "expected",
    [
        Expectation("sha256", hashlib.sha256(DATA).digest()),
        Expectation("sha1", hashlib.sha1(DATA).digest()),
        Expectation("md5", MD5.digest()),
        Expectation("crc32", zlib.crc32(DATA).to_bytes(4, "big")),
        Expectation("md5", parts_digest("md5", 4), 3),
        Expectation("sha256", parts_digest("sha256", 4), 3),
    ],
    ids=lambda each: f"{each.algorithm}-{each.parts}",
)
def test_a_checksum_holds_for_its_bytes_and_for_no_others(file: Path, expected: Expectation) -> None:
    assert expected.holds_for(file, 4) is True
    file.write_bytes(DATA[:-1] + b"X")
    assert expected.holds_for(file, 4) is False


@pytest.mark.parametrize("part_size_bytes", [None, 5, 3, 100])
def test_a_composite_checksum_cannot_be_told_without_the_right_part_size(
    file: Path, part_size_bytes: int | None
) -> None:
    assert Expectation("md5", parts_digest("md5", 4), 3).holds_for(file, part_size_bytes) is None
