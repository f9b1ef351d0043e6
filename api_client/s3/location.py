"""Addresses of objects: ``s3://bucket/key``."""

from __future__ import annotations

from dataclasses import dataclass

from api_client.contract.errors import ErrorCode, PackagingError

_SCHEME = "s3://"


@dataclass(frozen=True)
class S3Location:
    """A bucket and a key or prefix in it. ``str()`` gives the URL."""

    bucket: str
    key: str = ""

    @classmethod
    def parse(cls, url: str) -> S3Location:
        """Take ``s3://bucket/key`` apart; a slash at the end does not matter.

        Raises:
            PackagingError: ``request_invalid`` where it has no bucket.
        """
        bucket, _, key = url.removeprefix(_SCHEME).partition("/")
        if not url.startswith(_SCHEME) or not bucket:
            raise PackagingError(
                ErrorCode.REQUEST_INVALID, f"{url} is not of the form s3://bucket/prefix", fields={"location": url}
            )
        return cls(bucket, key.strip("/"))

    def child(self, name: str) -> S3Location:
        """The location one level below."""
        return S3Location(self.bucket, f"{self.key}/{name}" if self.key else name)

    def __str__(self) -> str:
        return f"{_SCHEME}{self.bucket}/{self.key}" if self.key else f"{_SCHEME}{self.bucket}"
