import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.s3 import StorageSettings, make_client
from tests.integration.storage.conftest import PART
from tests.integration.storage.proxy import Fault, Proxy
from worker.stop import StopRequested
from worker.storage.s3 import S3Location, S3Storage

pytestmark = pytest.mark.integration


def noise(size_bytes: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


@pytest.fixture
def put(settings: StorageSettings, prefix: S3Location) -> Callable[[str, bytes], S3Location]:
    """Put an object there as other programs do: without trainpack's note of its SHA-256."""
    client = make_client(settings)

    def put(name: str, data: bytes) -> S3Location:
        client.put_object(Bucket=prefix.bucket, Key=prefix.child(name).key, Body=data)
        return prefix.child(name)

    return put


@pytest.fixture
def put_in_parts(settings: StorageSettings, prefix: S3Location) -> Callable[[str, bytes, int], S3Location]:
    """Put an object there in parts of a size of its own."""
    client = make_client(settings)

    def put(name: str, data: bytes, part_size_bytes: int) -> S3Location:
        address: dict[str, Any] = {"Bucket": prefix.bucket, "Key": prefix.child(name).key}
        upload = client.create_multipart_upload(**address)["UploadId"]
        parts: list[Any] = []
        for number, at in enumerate(range(0, len(data), part_size_bytes), 1):
            piece = data[at : at + part_size_bytes]
            answer = client.upload_part(**address, UploadId=upload, PartNumber=number, Body=piece)
            parts.append({"PartNumber": number, "ETag": answer["ETag"]})
        client.complete_multipart_upload(**address, UploadId=upload, MultipartUpload={"Parts": parts})
        return prefix.child(name)

    return put


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("size_bytes", [0, 1, PART, 2 * PART + 9])
def test_what_is_downloaded_is_the_object_and_nothing_lies_beside_it(
    storage: S3Storage, put: Callable[[str, bytes], S3Location], tmp_path: Path, size_bytes: int
) -> None:
    source = put("x", noise(size_bytes))
    seen = []
    storage.download_file(source, tmp_path / "a" / "x", report=lambda *progress: seen.append(progress))
    assert (tmp_path / "a" / "x").read_bytes() == noise(size_bytes)
    assert names(tmp_path / "a") == ["x"]
    assert seen[-1] == (size_bytes, size_bytes, "x")


@pytest.mark.parametrize("kind", ["cut_answer", "drop", "status"])
def test_a_passing_fault_is_survived(
    proxied: S3Storage, proxy: Proxy, put: Callable[[str, bytes], S3Location], tmp_path: Path, kind: str
) -> None:
    source = put("x", noise(PART + 9))
    proxy.faults.append(Fault(kind, "GET", "/x", 503, times=2))
    proxied.download_file(source, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == noise(PART + 9)
    assert proxy.faults[0].times == 0


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault("cut_answer", "GET"), ErrorCode.DOWNLOAD_FAILED),
        (Fault("status", "GET", "", 500), ErrorCode.DOWNLOAD_FAILED),
        (Fault("drop", "GET"), ErrorCode.STORAGE_UNREACHABLE),
        (Fault("status", "GET", "", 403), ErrorCode.STORAGE_DENIED),
        (Fault("answer", "GET", "", (200, {}, b"all of it, whatever was asked for")), ErrorCode.DOWNLOAD_FAILED),
    ],
    ids=lambda value: getattr(value, "kind", value),
)
def test_a_lasting_fault_fails_with_its_code_and_makes_no_file(
    proxied: S3Storage,
    proxy: Proxy,
    put: Callable[[str, bytes], S3Location],
    tmp_path: Path,
    fault: Fault,
    code: ErrorCode,
) -> None:
    source = put("x", noise(1000))
    proxy.faults.append(fault)
    with pytest.raises(PackagingError) as caught:
        proxied.download_file(source, tmp_path / "x")
    assert caught.value.code is code
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("part_size_bytes", [None, PART + 1000])
def test_bytes_that_change_on_the_way_are_noticed_and_fetched_anew(
    proxied: S3Storage,
    proxy: Proxy,
    put: Callable[[str, bytes], S3Location],
    put_in_parts: Callable[[str, bytes, int], S3Location],
    tmp_path: Path,
    part_size_bytes: int | None,
) -> None:
    data = noise(2 * PART + 9)
    source = put_in_parts("x", data, part_size_bytes) if part_size_bytes else put("x", data)
    proxy.faults.append(Fault("flip_answer", "GET", "/x", times=1))
    with pytest.raises(PackagingError, match="arrived changed: its md5 differs") as caught:
        proxied.download_file(source, tmp_path / "x")
    assert caught.value.code is ErrorCode.DOWNLOAD_FAILED
    assert caught.value.retryable
    assert names(tmp_path) == []
    proxied.download_file(source, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == data


def test_what_trainpack_uploaded_is_checked_by_its_sha256(
    proxied: S3Storage, proxy: Proxy, storage: S3Storage, prefix: S3Location, tmp_path: Path
) -> None:
    (tmp_path / "x").write_bytes(b"GGUF" * 100)
    storage.upload_file(tmp_path / "x", prefix.child("x"))
    proxy.faults.append(Fault("flip_answer", "GET"))
    with pytest.raises(PackagingError, match="its sha256 differs"):
        proxied.download_file(prefix.child("x"), tmp_path / "y")


def test_the_callers_sha256_wins(storage: S3Storage, put: Callable[[str, bytes], S3Location], tmp_path: Path) -> None:
    with pytest.raises(PackagingError, match="its sha256 differs"):
        storage.download_file(put("x", b"other"), tmp_path / "x", sha256="0" * 64)


def test_a_stopped_download_goes_on_where_it_was(
    settings: StorageSettings, proxy: Proxy, put: Callable[[str, bytes], S3Location], tmp_path: Path
) -> None:
    proxied = S3Storage(settings.model_copy(update={"endpoint_url": proxy.url, "concurrency": 1}))
    data = noise(4 * PART)
    source = put("x", data)
    arrived = []
    with pytest.raises(StopRequested):
        proxied.download_file(
            source, tmp_path / "x", report=lambda done, *_: arrived.append(done), should_stop=lambda: bool(arrived)
        )
    assert not (tmp_path / "x").exists()
    kept = len((tmp_path / "x.journal").read_text().splitlines()) - 1  # the first line says whose journal it is
    assert 1 <= kept < 4
    proxy.seen.clear()
    proxied.download_file(source, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == data
    assert proxy.count("GET") == 4 - kept
    assert names(tmp_path) == ["x"]


def test_pieces_that_the_journal_promises_and_the_file_lacks_are_fetched_again(
    proxied: S3Storage, proxy: Proxy, put: Callable[[str, bytes], S3Location], tmp_path: Path
) -> None:
    data = noise(2 * PART)
    source = put("x", data)
    proxy.faults.append(Fault("status", "GET", "/x", 403, times=1))
    with pytest.raises(PackagingError):
        proxied.download_file(source, tmp_path / "x")
    journal = tmp_path / "x.journal"
    head = journal.read_text().splitlines()[0]
    noted = [{"piece": 0, "sha256": hashlib.sha256(data[:PART]).hexdigest()}, {"piece": 1, "sha256": "0" * 64}]
    journal.write_text("\n".join([head, *map(json.dumps, noted), '{"torn": li']), "ascii")
    (tmp_path / "x.partial").write_bytes(bytes(2 * PART))
    proxied.download_file(source, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == data


def test_an_object_replaced_meanwhile_is_noticed(
    settings: StorageSettings, proxied: S3Storage, proxy: Proxy, put: Callable[[str, bytes], S3Location], tmp_path: Path
) -> None:
    source = put("x", noise(2 * PART))
    arrived: list[Any] = []

    def replace_it(*_: object) -> None:
        if not arrived:
            put("x", noise(2 * PART, seed=2))
        arrived.append(1)

    one_by_one = S3Storage(settings.model_copy(update={"endpoint_url": proxy.url, "concurrency": 1}))
    with pytest.raises(PackagingError, match="PreconditionFailed") as caught:
        one_by_one.download_file(source, tmp_path / "x", report=replace_it)
    assert caught.value.code is ErrorCode.DOWNLOAD_FAILED
    proxied.download_file(source, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == noise(2 * PART, seed=2)


def test_a_missing_object_has_the_code_the_caller_names_and_a_missing_bucket_is_denied(
    storage: S3Storage, prefix: S3Location, tmp_path: Path
) -> None:
    with pytest.raises(PackagingError, match=f"{prefix.child('x')} does not exist") as caught:
        storage.download_file(prefix.child("x"), tmp_path / "x", missing=ErrorCode.BASE_MODEL_NOT_FOUND)
    assert caught.value.code is ErrorCode.BASE_MODEL_NOT_FOUND
    with pytest.raises(PackagingError) as caught:
        storage.download_file(S3Location("misspelt", "x"), tmp_path / "x", missing=ErrorCode.BASE_MODEL_NOT_FOUND)
    assert caught.value.code is ErrorCode.STORAGE_DENIED


def test_a_file_in_the_way_of_the_directory_is_not_writable(
    storage: S3Storage, put: Callable[[str, bytes], S3Location], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(PackagingError) as caught:
        storage.download_file(put("x", b"x"), tmp_path / "file" / "x")
    assert caught.value.code is ErrorCode.OUTPUT_DIR_NOT_WRITABLE


def test_listing_stays_below_the_prefix_and_turns_the_page(
    proxied: S3Storage, proxy: Proxy, put: Callable[[str, bytes], S3Location], prefix: S3Location
) -> None:
    for name in ("models/base/config.json", "models/base/sub/x", "models/base-2/config.json"):
        put(name, b"{}")
    found = proxied.list_objects(prefix.child("models/base"))
    assert [each.key.removeprefix(prefix.key) for each in found] == ["/models/base/config.json", "/models/base/sub/x"]
    assert [each.size_bytes for each in found] == [2, 2]

    page = """<ListBucketResult><IsTruncated>{more}</IsTruncated>{next}
        <Contents><Key>k{number}</Key><Size>1</Size><ETag>"e"</ETag></Contents></ListBucketResult>"""
    first = page.format(more="true", next="<NextContinuationToken>t1</NextContinuationToken>", number=1)
    last = page.format(more="false", next="", number=2)
    proxy.faults.append(Fault("answer", "GET", "continuation-token=t1", (200, {}, last.encode())))
    proxy.faults.append(Fault("answer", "GET", "list-type=2", (200, {}, first.encode())))
    assert [each.key for each in proxied.list_objects(prefix)] == ["k1", "k2"]


def test_deleting_is_done_once_and_forgiven_twice(storage: S3Storage, put: Callable[[str, bytes], S3Location]) -> None:
    source = put("x", b"x")
    storage.delete(source)
    assert storage.find(source) is None
    storage.delete(source)
