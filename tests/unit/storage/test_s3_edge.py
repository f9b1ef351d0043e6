from typing import Any

import pytest
from botocore import exceptions
from botocore.parsers import ResponseParserError
from pydantic import SecretStr

from api_client.contract.errors import ErrorCode
from api_client.s3 import Request, S3Location, S3Retry, StorageSettings, attempt, can_retry, storage_error
from worker.stop import StopRequested
from worker.storage.s3_limits import Limits
from worker.storage.s3_upload import MAX_PARTS, split

SETTINGS = StorageSettings(
    endpoint_url="https://user:pw@s3.example.com", access_key=SecretStr("AKEXAMPLE"), secret_key=SecretStr("hush")
)
MIB = 2**20
UP = Request("uploading s3://b/k", ErrorCode.UPLOAD_FAILED, ErrorCode.BASE_MODEL_NOT_FOUND)


def refused(status: int, code: str, message: str = "no") -> exceptions.ClientError:
    response: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return exceptions.ClientError(response, "PutObject")


ENDPOINT: dict[str, Any] = {"endpoint_url": "https://s3.example.com", "error": "x"}


@pytest.mark.parametrize(
    ("error", "code", "again"),
    [
        (exceptions.EndpointConnectionError(**ENDPOINT), ErrorCode.STORAGE_UNREACHABLE, True),
        (exceptions.ConnectTimeoutError(**ENDPOINT), ErrorCode.STORAGE_UNREACHABLE, True),
        (exceptions.ReadTimeoutError(**ENDPOINT), ErrorCode.STORAGE_UNREACHABLE, True),
        (exceptions.SSLError(**ENDPOINT), ErrorCode.STORAGE_UNREACHABLE, True),
        (exceptions.ConnectionClosedError(**ENDPOINT), ErrorCode.STORAGE_UNREACHABLE, True),
        (exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2), ErrorCode.UPLOAD_FAILED, True),
        (ResponseParserError("not xml"), ErrorCode.UPLOAD_FAILED, True),
        (refused(500, "InternalError"), ErrorCode.UPLOAD_FAILED, True),
        (refused(503, "SlowDown"), ErrorCode.UPLOAD_FAILED, True),
        (refused(429, "429"), ErrorCode.UPLOAD_FAILED, True),
        (refused(400, "BadDigest"), ErrorCode.UPLOAD_FAILED, True),
        (refused(400, "RequestTimeout"), ErrorCode.UPLOAD_FAILED, True),
        (refused(404, "NoSuchUpload"), ErrorCode.UPLOAD_FAILED, False),
        (refused(412, "PreconditionFailed"), ErrorCode.UPLOAD_FAILED, False),
        (refused(404, "NoSuchKey"), ErrorCode.BASE_MODEL_NOT_FOUND, False),
        (refused(404, "NoSuchBucket"), ErrorCode.STORAGE_DENIED, False),
        (refused(403, "InvalidAccessKeyId"), ErrorCode.STORAGE_DENIED, False),
        (refused(403, "SignatureDoesNotMatch"), ErrorCode.STORAGE_DENIED, False),
        (refused(400, "InvalidRequest"), ErrorCode.STORAGE_DENIED, False),
        (exceptions.NoCredentialsError(), ErrorCode.STORAGE_DENIED, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_every_kind_of_error_has_a_code_and_is_tried_again_only_where_that_can_help(
    error: Exception, code: ErrorCode, again: bool
) -> None:
    assert storage_error(error, UP, SETTINGS).code is code
    assert can_retry(error) is again


def test_no_secret_gets_into_a_message() -> None:
    told = storage_error(refused(403, "AccessDenied", "key AKEXAMPLE with hush is wrong"), UP, SETTINGS)
    assert told.message == "uploading s3://b/k: AccessDenied (HTTP 403): key *** with *** is wrong"
    assert told.fields["endpoint_url"] == "https://s3.example.com"
    assert "pw" not in str(told.to_dict())


def test_attempts_are_bounded_and_a_stop_ends_the_pause() -> None:
    calls = []

    def fail() -> None:
        calls.append(1)
        raise refused(500, "InternalError")

    with pytest.raises(Exception, match="upload_failed"):
        attempt(fail, UP, SETTINGS, Limits(S3Retry(attempts=3, base_s=0.001)))
    assert len(calls) == 3
    with pytest.raises(StopRequested):
        attempt(fail, UP, SETTINGS, Limits(S3Retry(base_s=60, max_s=60), should_stop=lambda: len(calls) > 3))
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("size_bytes", "step", "count", "last"),
    [
        (0, 16 * MIB, 1, 0),
        (16 * MIB, 16 * MIB, 1, 16 * MIB),
        (16 * MIB + 1, 16 * MIB, 2, 1),
        (48 * MIB, 16 * MIB, 3, 16 * MIB),
    ],
)
def test_parts_cover_the_file(size_bytes: int, step: int, count: int, last: int) -> None:
    parts = split(size_bytes, step)
    assert (len(parts), parts[-1].size_bytes) == (count, last)
    assert sum(part.size_bytes for part in parts) == size_bytes
    assert [part.number for part in parts] == list(range(1, count + 1))


def test_parts_grow_where_there_would_be_too_many() -> None:
    parts = split(MAX_PARTS * 16 * MIB + 1, 16 * MIB)
    assert len(parts) <= MAX_PARTS
    assert parts[0].size_bytes == 17 * MIB


def test_locations() -> None:
    assert S3Location.parse("s3://bucket/a/b/") == S3Location("bucket", "a/b")
    assert str(S3Location.parse("s3://bucket").child("job").child("x.gguf")) == "s3://bucket/job/x.gguf"
    for wrong in ("s3://", "s3:///key", "/local", "https://bucket/key"):
        with pytest.raises(Exception, match="request_invalid"):
            S3Location.parse(wrong)
