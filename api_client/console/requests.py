"""Packaging requests that come over HTTP. Their paths are the workers', so a relative one means nothing here.

The model itself makes relative paths absolute, as a producer on the same disk wants it; the console must refuse them
before, or they would lead into its own working directory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.request import PackagingRequest

_IMATRIX_WORDS = ("auto", "compute", "off")


def refuse_relative_paths(data: Any) -> Any:
    """The request's JSON as it is, if every path in it is absolute or a URL.

    Raises:
        PackagingError: ``request_invalid``, naming the field.
    """
    if isinstance(data, Mapping):
        for field, value in _locations(data):
            if isinstance(value, str) and value.strip() and not value.startswith("/") and "://" not in value:
                raise PackagingError(
                    ErrorCode.REQUEST_INVALID,
                    f"{field}: {value[:200]!r} is not an absolute path or a URL",
                    remedy="Write the whole path as the workers see it.",
                    fields={"field": field},
                )
    return data


def _locations(data: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    checkpoint = data.get("checkpoint")
    if isinstance(checkpoint, str) and ("/" in checkpoint or checkpoint in (".", "..", "~")):
        yield "checkpoint", checkpoint
    yield from ((name, data.get(name)) for name in ("base_model", "output_dir"))
    task, imatrix = data.get("task"), data.get("imatrix")
    if isinstance(task, Mapping):
        yield from ((f"task.{name}", task.get(name)) for name in ("base_model", "output_dir"))
    if isinstance(imatrix, Mapping):
        yield from ((f"imatrix.{name}", imatrix.get(name)) for name in ("path", "calibration"))
    elif imatrix not in _IMATRIX_WORDS:
        yield "imatrix", imatrix


HttpRequest = Annotated[PackagingRequest, BeforeValidator(refuse_relative_paths)]
"""The body of a submitted job."""
