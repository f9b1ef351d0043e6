"""Other S3 servers: what several answer about an upload in parts, recorded, and servers that a package gives.

Recorded: the forms in which AWS, MinIO, Ceph, R2, GCS and moto answer HEAD after an upload in parts, as their
documentation and reports have them, laid over a real server's answer. Wherever the bytes are right the upload counts,
and wherever they are not it does not.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pydantic import SecretStr

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.s3 import S3Location, make_client
from api_client.s3.settings import StorageSettings
from tests.integration.harness import eventually
from tests.integration.storage.conftest import PART, QUICK
from tests.integration.storage.proxy import Fault, Proxy
from tests.integration.storage.test_s3_upload import noise
from worker.local.embedded.ports import choose_ports, is_free
from worker.storage.objects import SHA256_METADATA
from worker.storage.s3 import S3Storage

pytestmark = pytest.mark.integration
DATA = noise(2 * PART + 12345)
PARTS = [DATA[at : at + PART] for at in range(0, len(DATA), PART)]
COMPOSITE = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in PARTS)).digest()
SUM = base64.b64encode(COMPOSITE).decode()
OTHER = base64.b64encode(hashlib.sha256(b"other").digest()).decode()

ANSWERS: dict[str, str | None] = {
    "AWS and MinIO: a composite checksum with the number of parts": f"{SUM}-3",
    "moto: the same without the number": SUM,
    "Ceph and GCS: none": None,
    "a full checksum, as servers that hash on arrival have": base64.b64encode(hashlib.sha256(DATA).digest()).decode(),
    "of parts that were cut in another way": f"{OTHER}-2",
    "of another kind, with the right number": f"{OTHER}-3",
    "hexadecimal": COMPOSITE.hex(),
    "no checksum at all": "yes",
}


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "merged_model.gguf"
    path.write_bytes(DATA)
    return path


@pytest.mark.parametrize("form", ANSWERS)
def test_right_bytes_count_however_the_server_writes_their_checksum(
    form: str, proxied: S3Storage, proxy: Proxy, prefix: S3Location, big: Path
) -> None:
    proxy.faults.append(Fault("answer_header", "HEAD", "", ("x-amz-checksum-sha256", ANSWERS[form])))
    proxied.upload_file(big, prefix.child("x"))
    sent = proxy.count("PUT")
    proxied.upload_file(big, prefix.child("x"))
    assert proxy.count("PUT") == sent, "what is there is not sent again"


@pytest.mark.parametrize("form", [form for form in ANSWERS if f"{SUM}-3" != ANSWERS[form]])
def test_wrong_bytes_are_found_whatever_the_server_says(
    form: str, proxied: S3Storage, proxy: Proxy, prefix: S3Location, big: Path
) -> None:
    if form.startswith("a full checksum"):
        pytest.skip("a server that vouches for these very bytes is believed")
    proxy.faults.append(Fault("answer_header", "HEAD", "", ("x-amz-checksum-sha256", ANSWERS[form])))
    proxy.faults.append(Fault("flip_answer", "GET"))
    with pytest.raises(PackagingError) as caught:
        proxied.upload_file(big, prefix.child("x"))
    assert caught.value.code is ErrorCode.UPLOAD_FAILED


def test_a_server_that_keeps_no_metadata_is_read_back(
    proxied: S3Storage, proxy: Proxy, prefix: S3Location, big: Path
) -> None:
    proxy.faults.append(Fault("answer_header", "HEAD", "", (f"x-amz-meta-{SHA256_METADATA}", None)))
    proxied.upload_file(big, prefix.child("x"))
    sent = proxy.count("PUT")
    proxied.upload_file(big, prefix.child("x"))
    assert proxy.count("PUT") == 2 * sent, "nothing says that what is there is this file, so it is sent again"


class S3Server(NamedTuple):
    """How a server of a package is started.

    Attributes:
        program: Its name; ``NAME_SERVER`` may say where it lies.
        arguments: With ``PORT`` and ``DIRECTORY`` for what varies.
        ready: What it says then; nothing: its port is enough.
        access_key: Of the credentials that it takes.
        secret_key: Of them.
        environment: Further settings of it.
    """

    program: str
    arguments: tuple[str, ...]
    ready: str
    access_key: str
    secret_key: str
    environment: tuple[tuple[str, str], ...] = ()


SERVERS = {
    "moto": S3Server("moto_server", ("-H", "127.0.0.1", "-p", "PORT"), "Running on", "a", "aaaaaaaa"),
    "s3rver": S3Server(
        "s3rver", ("-d", "DIRECTORY", "-a", "127.0.0.1", "-p", "PORT"), "listening on", "S3RVER", "S3RVER"
    ),
    "localbucket": S3Server("localbucket", ("DIRECTORY", "--port", "PORT"), "", "a", "aaaaaaaa"),
    "nanio": S3Server(
        "nanio",
        ("serve", "--host", "127.0.0.1", "--port", "PORT", "--data-dir", "DIRECTORY"),
        "running on",
        "a",
        "aaaaaaaa",
        (("NANIO_ACCESS_KEY", "a"), ("NANIO_SECRET_KEY", "aaaaaaaa")),
    ),
}
"""Besides SeaweedFS, over which all other tests of the storage run."""


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorageSettings]:
    """One of the servers, where it is installed."""
    chosen = SERVERS[request.param]
    program = os.environ.get(f"{request.param.upper()}_SERVER") or shutil.which(chosen.program)
    if program is None:
        pytest.skip(f"{chosen.program} is not installed here")
    port = choose_ports({"s3": 0})["s3"]
    directory = tmp_path_factory.mktemp(request.param)
    log = directory / "log"
    given = {"PORT": str(port), "DIRECTORY": str(directory)}
    with log.open("wb") as output:
        command = [program, *(given.get(argument, argument) for argument in chosen.arguments)]
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | dict(chosen.environment))
    try:
        eventually(lambda: chosen.ready in log.read_text(errors="replace"), f"{chosen.program} is ready")
        eventually(lambda: not is_free(port), f"{chosen.program} listens")
        settings = StorageSettings(
            endpoint_url=f"http://127.0.0.1:{port}",
            region="us-east-1",
            access_key=SecretStr(chosen.access_key),
            secret_key=SecretStr(chosen.secret_key),
            bucket="models",
            prefix="",
            part_size_bytes=PART,
            concurrency=4,
            timeout_s=10.0,
        )
        make_client(settings).create_bucket(Bucket="models")
        yield settings
    finally:
        process.kill()
        process.wait(10)


@pytest.mark.parametrize("size_bytes", [0, 1, PART, PART + 1, 2 * PART + 12345])
def test_other_servers_take_and_give_back_every_file(server: StorageSettings, tmp_path: Path, size_bytes: int) -> None:
    storage = S3Storage(server, retry=QUICK)
    source, target = tmp_path / "a.gguf", tmp_path / "back.gguf"
    source.write_bytes(noise(size_bytes))
    location = S3Location("models", f"test-{uuid.uuid4().hex}")
    storage.upload_file(source, location.child("a.gguf"))
    storage.upload_file(source, location.child("a.gguf"))
    assert [info.size_bytes for info in storage.list_objects(location)] == [size_bytes]
    storage.download_file(location.child("a.gguf"), target)
    assert target.read_bytes() == source.read_bytes()
    storage.delete(location.child("a.gguf"))
    assert storage.find(location.child("a.gguf")) is None


def test_what_others_uploaded_in_parts_to_other_servers_can_be_fetched(server: StorageSettings, tmp_path: Path) -> None:
    client, key = make_client(server), f"foreign-{uuid.uuid4().hex}/a.gguf"
    address: Any = {"Bucket": "models", "Key": key}
    upload = client.create_multipart_upload(**address, ChecksumAlgorithm="SHA256")["UploadId"]
    parts: list[Any] = []
    for number, data in enumerate(PARTS, 1):
        digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
        tag = client.upload_part(**address, UploadId=upload, PartNumber=number, Body=data, ChecksumSHA256=digest)[
            "ETag"
        ]
        parts.append({"PartNumber": number, "ETag": tag, "ChecksumSHA256": digest})
    client.complete_multipart_upload(**address, UploadId=upload, MultipartUpload={"Parts": parts})
    S3Storage(server, retry=QUICK).download_file(S3Location("models", key), tmp_path / "a.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == DATA
