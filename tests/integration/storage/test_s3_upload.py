import hashlib
import random
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from api_client.console.links import Links
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import Artifact, ArtifactKind
from api_client.s3 import StorageSettings, make_client
from tests.integration.storage.conftest import PART, QUICK
from tests.integration.storage.proxy import Fault, Proxy
from worker.local.embedded import StackInfo
from worker.stop import StopRequested
from worker.storage.s3 import S3Location, S3Storage

pytestmark = pytest.mark.integration


def noise(size_bytes: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A file of three parts, the last one short."""
    path = tmp_path / "merged_model.gguf"
    path.write_bytes(noise(2 * PART + 12345))
    return path


def stored(settings: StorageSettings, location: S3Location) -> bytes:
    return make_client(settings).get_object(Bucket=location.bucket, Key=location.key)["Body"].read()


def unfinished(settings: StorageSettings, location: S3Location) -> list[Any]:
    answer = make_client(settings).list_multipart_uploads(Bucket=location.bucket, Prefix=location.key)
    return answer.get("Uploads", [])


@pytest.mark.parametrize("size_bytes", [0, 1, PART, PART + 1, 2 * PART, 3 * PART + 7])
def test_what_is_uploaded_is_there_byte_for_byte(
    storage: S3Storage, settings: StorageSettings, prefix: S3Location, tmp_path: Path, size_bytes: int
) -> None:
    path = tmp_path / "模型 Q4_K_M.gguf"
    path.write_bytes(noise(size_bytes))
    seen: list[Any] = []
    storage.upload_file(path, prefix.child(path.name), report=seen.append)
    assert stored(settings, prefix.child(path.name)) == path.read_bytes()
    assert seen == sorted(seen)
    assert seen[-1] == size_bytes
    assert unfinished(settings, prefix) == []


def test_the_same_file_is_not_sent_twice_and_a_changed_one_is(
    proxied: S3Storage, proxy: Proxy, prefix: S3Location, big: Path
) -> None:
    proxied.upload_file(big, prefix.child("x"))
    sent = proxy.count("PUT")
    assert sent == 3
    proxied.upload_file(big, prefix.child("x"))
    assert proxy.count("PUT") == sent
    big.write_bytes(noise(2 * PART + 12345, seed=2))
    proxied.upload_file(big, prefix.child("x"))
    assert proxy.count("PUT") == 2 * sent


@pytest.mark.parametrize(
    "fault",
    [
        Fault("flip_request", "PUT", "partNumber=2", times=1),
        Fault("status", "PUT", "partNumber=2", 503, times=2),
        Fault("drop", "PUT", "partNumber=3", times=2),
        Fault("status", "POST", "uploads", 500, times=1),
        Fault("status", "HEAD", "", 429, times=1),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.method}",
)
def test_a_passing_fault_is_survived(
    proxied: S3Storage, proxy: Proxy, settings: StorageSettings, prefix: S3Location, big: Path, fault: Fault
) -> None:
    proxy.faults.append(fault)
    proxied.upload_file(big, prefix.child("x"))
    assert fault.times == 0, "the fault was met"
    assert stored(settings, prefix.child("x")) == big.read_bytes()


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault("flip_request", "PUT", "partNumber=2"), ErrorCode.UPLOAD_FAILED),
        (Fault("status", "PUT", "partNumber=2", 500), ErrorCode.UPLOAD_FAILED),
        (Fault("drop", "PUT", "partNumber=2"), ErrorCode.STORAGE_UNREACHABLE),
        (Fault("status", "PUT", "partNumber=2", 403), ErrorCode.STORAGE_DENIED),
    ],
    ids=lambda value: getattr(value, "kind", value),
)
def test_a_lasting_fault_fails_with_its_code_and_leaves_nothing(
    proxied: S3Storage,
    proxy: Proxy,
    settings: StorageSettings,
    prefix: S3Location,
    big: Path,
    fault: Fault,
    code: ErrorCode,
) -> None:
    proxy.faults.append(fault)
    with pytest.raises(PackagingError, match=f"part 2 of {prefix.child('x')}") as caught:
        proxied.upload_file(big, prefix.child("x"))
    assert caught.value.code is code
    assert unfinished(settings, prefix) == []
    assert S3Storage(settings).find(prefix.child("x")) is None
    expected = 1 if code is ErrorCode.STORAGE_DENIED else QUICK.attempts
    assert proxy.count("PUT", "partNumber=2") == expected


def test_an_upload_that_is_tried_again_goes_on_where_it_failed(
    proxied: S3Storage, proxy: Proxy, settings: StorageSettings, prefix: S3Location, big: Path
) -> None:
    proxy.faults.append(Fault("status", "PUT", "partNumber=3", 503, times=QUICK.attempts))
    with pytest.raises(PackagingError, match="part 3"):
        proxied.upload_file(big, prefix.child("x"), keep_parts=True)
    assert len(unfinished(settings, prefix)) == 1
    proxied.upload_file(big, prefix.child("x"), keep_parts=True)
    assert proxy.count("PUT", "partNumber") - QUICK.attempts == 3, "the storage took every part once"
    assert stored(settings, prefix.child("x")) == big.read_bytes()
    assert unfinished(settings, prefix) == []


def test_parts_of_another_file_are_thrown_away(
    proxied: S3Storage, proxy: Proxy, settings: StorageSettings, prefix: S3Location, big: Path
) -> None:
    proxy.faults.append(Fault("status", "PUT", "partNumber=3", 503, times=QUICK.attempts))
    with pytest.raises(PackagingError, match="part 3"):
        proxied.upload_file(big, prefix.child("x"), keep_parts=True)
    big.write_bytes(noise(2 * PART + 12345, seed=2))
    proxied.upload_file(big, prefix.child("x"))
    assert stored(settings, prefix.child("x")) == big.read_bytes()
    assert unfinished(settings, prefix) == []


def test_a_storage_that_does_not_answer_in_time_is_unreachable(
    settings: StorageSettings, proxy: Proxy, prefix: S3Location, tmp_path: Path
) -> None:
    (tmp_path / "x").write_bytes(b"x")
    proxy.faults.append(Fault("hang", "PUT"))
    slow = S3Storage(settings.model_copy(update={"endpoint_url": proxy.url, "timeout_s": 0.3}), retry=QUICK)
    with pytest.raises(PackagingError, match="ReadTimeoutError") as caught:
        slow.upload_file(tmp_path / "x", prefix.child("x"))
    assert caught.value.code is ErrorCode.STORAGE_UNREACHABLE
    assert caught.value.retryable


def test_nobody_listening_is_unreachable(settings: StorageSettings, prefix: S3Location, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    nobody = S3Storage(settings.model_copy(update={"endpoint_url": "http://u:pw@127.0.0.1:1"}), retry=QUICK)
    with pytest.raises(PackagingError, match=r"no answer from http://127.0.0.1:1 ") as caught:
        nobody.upload_file(tmp_path / "x", prefix.child("x"))
    assert caught.value.code is ErrorCode.STORAGE_UNREACHABLE
    assert "pw" not in str(caught.value.to_dict())


def test_an_endpoint_that_is_no_url_is_a_setting_to_correct(settings: StorageSettings) -> None:
    with pytest.raises(PackagingError, match="'localhost:9000' is not a URL") as caught:
        S3Storage(settings.model_copy(update={"endpoint_url": "localhost:9000"})).check_bucket("x")
    assert caught.value.code is ErrorCode.SETTINGS_INVALID


def test_wrong_credentials_are_denied_at_once_and_not_shown(
    with_secret: Callable[[str], S3Storage], settings: StorageSettings, prefix: S3Location, tmp_path: Path
) -> None:
    (tmp_path / "x").write_bytes(b"x")
    with pytest.raises(PackagingError, match="403") as caught:
        with_secret("not-the-secret-key").upload_file(tmp_path / "x", prefix.child("x"))
    assert caught.value.code is ErrorCode.STORAGE_DENIED
    assert not caught.value.retryable
    shown = str(caught.value.to_dict())
    assert "not-the-secret-key" not in shown
    assert settings.access_key is not None
    assert settings.access_key.get_secret_value() not in shown


def test_a_missing_bucket_is_denied(storage: S3Storage, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    with pytest.raises(PackagingError, match=r"AccessDenied|NoSuchBucket") as caught:
        storage.upload_file(tmp_path / "x", S3Location("misspelt", "x"))
    assert caught.value.code is ErrorCode.STORAGE_DENIED
    with pytest.raises(PackagingError) as caught:
        storage.check_bucket("misspelt")
    assert caught.value.code is ErrorCode.STORAGE_DENIED


def test_a_storage_without_checksums_is_read_back(
    proxied: S3Storage, proxy: Proxy, prefix: S3Location, big: Path
) -> None:
    proxy.faults.append(Fault("answer_header", "HEAD", "", ("x-amz-checksum-sha256", None)))
    proxied.upload_file(big, prefix.child("x"))
    assert proxy.count("GET", "/x") == 3
    proxy.faults.append(Fault("flip_answer", "GET", "/y", times=1))
    with pytest.raises(PackagingError, match="differs") as caught:
        proxied.upload_file(big, prefix.child("y"))
    assert caught.value.code is ErrorCode.UPLOAD_FAILED


@pytest.mark.parametrize("size_bytes", [100, PART + 100])
def test_a_checksum_of_other_bytes_fails_the_upload(
    proxied: S3Storage, proxy: Proxy, prefix: S3Location, tmp_path: Path, size_bytes: int
) -> None:
    (tmp_path / "x").write_bytes(noise(size_bytes))
    other = "LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ="
    proxy.faults.append(
        Fault("answer_header", "HEAD", "", ("x-amz-checksum-sha256", other if size_bytes < PART else f"{other}-2"))
    )
    proxied.upload_file(tmp_path / "x", prefix.child("read back"))  # the bytes are right, whatever it says of them
    assert proxy.count("GET") > 0
    proxy.faults.append(Fault("flip_answer", "GET"))
    with pytest.raises(PackagingError, match="differs") as caught:
        proxied.upload_file(tmp_path / "x", prefix.child("x"))
    assert caught.value.code is ErrorCode.UPLOAD_FAILED


def test_a_stop_is_heard_and_leaves_nothing(
    storage: S3Storage, settings: StorageSettings, prefix: S3Location, big: Path
) -> None:
    seen: list[Any] = []
    with pytest.raises(StopRequested):
        storage.upload_file(big, prefix.child("x"), report=seen.append, should_stop=lambda: bool(seen))
    assert seen
    assert unfinished(settings, prefix) == []
    assert storage.find(prefix.child("x")) is None


def test_what_a_crashed_upload_left_is_thrown_away(
    storage: S3Storage, settings: StorageSettings, prefix: S3Location, big: Path
) -> None:
    client = make_client(settings)
    for name in ("x", "x-other"):
        client.create_multipart_upload(Bucket=prefix.bucket, Key=prefix.child(name).key)
    storage.upload_file(big, prefix.child("x"))
    assert [each["Key"] for each in unfinished(settings, prefix)] == [prefix.child("x-other").key]


@pytest.mark.parametrize("size_bytes", [10, PART + 10])
def test_a_file_that_changed_since_it_was_made_is_not_published(
    storage: S3Storage, settings: StorageSettings, prefix: S3Location, tmp_path: Path, size_bytes: int
) -> None:
    (tmp_path / "x").write_bytes(noise(size_bytes))
    with pytest.raises(PackagingError, match="has changed") as caught:
        storage.upload_file(tmp_path / "x", prefix.child("x"), sha256=hashlib.sha256(b"before").hexdigest())
    assert caught.value.code is ErrorCode.ARTIFACT_LOST
    assert storage.find(prefix.child("x")) is None
    assert unfinished(settings, prefix) == []


def test_a_signed_link_opens_without_credentials(
    storage: S3Storage, stack: StackInfo, prefix: S3Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").write_bytes(b"GGUF")
    storage.upload_file(tmp_path / "x", prefix.child("a b.gguf"))
    for name in ("endpoint_url", "access_key", "secret_key"):
        monkeypatch.setenv(f"TRAINPACK_S3_{name.upper()}", getattr(stack, name))
    uploaded = Artifact(
        name="a b.gguf",
        path="/gone",
        kind=ArtifactKind.GGUF,
        size_bytes=4,
        sha256="0" * 64,
        url=str(prefix.child("a b.gguf")),
    )
    with urllib.request.urlopen(Links(None, 60).sign(uploaded)) as answer:
        assert answer.read() == b"GGUF"
