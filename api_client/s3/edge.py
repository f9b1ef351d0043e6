"""The one place where botocore is met: making a client, reading its errors by type, deciding what is tried again."""

from __future__ import annotations

import contextlib
import functools
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar
from urllib.parse import urlsplit

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.s3.settings import StorageSettings

if TYPE_CHECKING:
    from boto3.session import Session
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")

_POLL_S = 0.1
_SESSION_LOCK = threading.Lock()
_ARRIVED_CHANGED = frozenset({"BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "InvalidDigest"})
_UPLOAD_GONE = frozenset({"NoSuchUpload", "InvalidPart", "IncompleteBody"})
_TRY_LATER = frozenset({"RequestTimeout", "SlowDown", "TooManyRequests", "ThrottlingException"})


@dataclass(frozen=True)
class S3Retry:
    """How often one request is tried, and how long to wait in between (doubling, with jitter)."""

    attempts: int = 5
    base_s: float = 0.3
    max_s: float = 10.0

    def delay_s(self, failures: int) -> float:
        """Pause after the given number of failures."""
        return float(min(self.max_s, self.base_s * 2 ** (failures - 1)) * random.uniform(0.5, 1.0))


@dataclass(frozen=True)
class Request:
    """What is being asked of the storage, for messages and for the code of a failure.

    Attributes:
        doing: Start of the message, e.g. ``uploading s3://bucket/key``.
        failed: Code where the storage answers but cannot do it.
        missing: Code where the object does not exist; ``failed`` where not given.
    """

    doing: str
    failed: ErrorCode = ErrorCode.STORAGE_UNREACHABLE
    missing: ErrorCode | None = None


class Pace(Protocol):
    """How requests are made: retries, and who may end them early."""

    @property
    def retry(self) -> S3Retry:
        """Attempts and pauses."""

    def check(self) -> None:
        """Leave where work was asked to end, by an exception; asked before each attempt and during pauses."""


@dataclass(frozen=True)
class Patient:
    """A pace that nobody ends early."""

    retry: S3Retry = S3Retry(attempts=3)

    def check(self) -> None:
        """Go on."""


def make_client(settings: StorageSettings) -> S3Client:
    """A client for the storage; nothing is sent yet. Without keys in the settings boto3 looks for them itself.

    Raises:
        PackagingError: ``settings_invalid`` for an endpoint that is not a URL; ``dependency_missing``.
    """
    try:
        from botocore.config import Config

        with _SESSION_LOCK:
            session = _session()
    except ImportError as error:
        raise PackagingError(
            ErrorCode.DEPENDENCY_MISSING,
            "s3:// needs boto3, which is not installed",
            remedy="Install it: pip install 'trainpack[worker]'.",
            fields={"module": "boto3", "extra": "worker"},
        ) from error

    config = Config(
        connect_timeout=min(settings.timeout_s, 10.0),
        read_timeout=settings.timeout_s,
        retries={"total_max_attempts": 1},  # retried here, where a stop is heard and each part is known
        max_pool_connections=settings.concurrency + 2,
        s3={
            "addressing_style": "path" if settings.endpoint_url else "auto",
            "payload_signing_enabled": False,  # the signed checksum header vouches for the body: hashed once, not twice
        },
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        with _SESSION_LOCK:
            return session.client(
                "s3",
                endpoint_url=settings.endpoint_url,
                region_name=settings.region,
                aws_access_key_id=_secret(settings.access_key),
                aws_secret_access_key=_secret(settings.secret_key),
                config=config,
            )
    except ValueError as error:
        raise PackagingError(
            ErrorCode.SETTINGS_INVALID,
            f"TRAINPACK_S3_ENDPOINT_URL: {plain_endpoint(settings)!r} is not a URL such as https://s3.example.com",
        ) from error


@functools.cache
def _session() -> Session:
    """One session for all clients: reading botocore's service descriptions takes a third of a second."""
    import boto3

    return boto3.session.Session()


def attempt(call: Callable[[], T], request: Request, settings: StorageSettings, pace: Pace | None = None) -> T:
    """Make a request, again after a pause where that can help.

    Raises:
        PackagingError: as :func:`storage_error` says.
        Exception: what ``pace.check`` raises.
    """
    pace = pace or Patient()
    for failures in range(1, pace.retry.attempts + 1):
        pace.check()
        try:
            return call()
        except _foreign() as error:
            if failures == pace.retry.attempts or not can_retry(error):
                raise storage_error(error, request, settings) from error
        _pause(pace.retry.delay_s(failures), pace)
    raise AssertionError("attempts is at least one")


@contextlib.contextmanager
def storage_errors(request: Request, settings: StorageSettings) -> Iterator[None]:
    """Run a body that asks the storage once; its errors are read as :func:`attempt` reads them.

    Raises:
        PackagingError: as :func:`storage_error` says.
    """
    try:
        yield
    except _foreign() as error:
        raise storage_error(error, request, settings) from error


def can_retry(error: Exception) -> bool:
    """Whether the same request may succeed a moment later: no answer, a broken one, 5xx, bytes changed on the way."""
    from botocore.exceptions import ClientError

    if isinstance(error, ClientError):
        status, code = _status(error)
        return status >= 500 or status in (408, 429) or code in _TRY_LATER | _ARRIVED_CHANGED
    return isinstance(error, (*_no_answer(), *_broken_answer()))


def storage_error(error: Exception, request: Request, settings: StorageSettings) -> PackagingError:
    """The project's error for one of botocore's.

    No answer at all is ``storage_unreachable``; an answer of 5xx, or changed bytes, is ``request.failed``; a missing
    object is ``request.missing``; everything the storage refuses is ``storage_denied``. Keys never appear in it.
    """
    from botocore.exceptions import ClientError

    if isinstance(error, ClientError):
        status, name = _status(error)
        reason = f"{name} (HTTP {status}): {error.response.get('Error', {}).get('Message', '')}".rstrip(": ")
        code = _answered(status, name, request)
    elif isinstance(error, _broken_answer()):
        reason, code = f"the answer was cut short or unreadable ({type(error).__name__})", request.failed
    elif isinstance(error, _no_answer()):
        reason = f"no answer from {plain_endpoint(settings)} ({type(error).__name__})"
        code = ErrorCode.STORAGE_UNREACHABLE
    else:  # no credentials, impossible parameters
        reason, code = f"{type(error).__name__}: {error}", ErrorCode.STORAGE_DENIED
    return PackagingError(
        code,
        f"{request.doing}: {_masked(reason, settings)[:400]}",
        fields={"endpoint_url": plain_endpoint(settings), "bucket": settings.bucket},
    )


def plain_endpoint(settings: StorageSettings) -> str:
    """The endpoint for people: without a user name or password somebody put into it."""
    if settings.endpoint_url is None:
        return f"AWS S3 ({settings.region})"
    parts = urlsplit(settings.endpoint_url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _foreign() -> tuple[type[Exception], ...]:
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    return BotoCoreError, ClientError, ResponseParserError


def _no_answer() -> tuple[type[Exception], ...]:
    from botocore.exceptions import ConnectionError as NoConnection
    from botocore.exceptions import HTTPClientError

    return NoConnection, HTTPClientError


def _broken_answer() -> tuple[type[Exception], ...]:
    from botocore.exceptions import IncompleteReadError, ResponseStreamingError
    from botocore.parsers import ResponseParserError

    return IncompleteReadError, ResponseStreamingError, ResponseParserError


def _answered(status: int, name: str, request: Request) -> ErrorCode:
    if status >= 500 or status in (408, 412, 429) or name in _TRY_LATER | _ARRIVED_CHANGED | _UPLOAD_GONE:
        return request.failed
    if name in ("NoSuchKey", "404") and request.missing is not None:
        return request.missing
    return ErrorCode.STORAGE_DENIED


def _status(error: Exception) -> tuple[int, str]:
    response = getattr(error, "response", {})
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return status, str(response.get("Error", {}).get("Code", status))


def _pause(delay_s: float, pace: Pace) -> None:
    while delay_s > 0:
        pace.check()
        time.sleep(min(delay_s, _POLL_S))
        delay_s -= _POLL_S


def _masked(text: str, settings: StorageSettings) -> str:
    for secret in (_secret(settings.access_key), _secret(settings.secret_key)):
        text = text.replace(secret, "***") if secret else text
    return text


def _secret(value: object) -> str | None:
    get = getattr(value, "get_secret_value", None)
    return str(get()) if get is not None else None
