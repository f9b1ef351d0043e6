"""How errors leave the console: the HTTP status of each, and one JSON form, ``{"error": {...}}``, for all of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match

from api_client.console.language import accepted_language
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.words.formatting import one_line
from api_client.words.language import Language

_log = logging.getLogger(__name__)
_METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")


class ErrorDetail(BaseModel):
    """What went wrong, and what to do."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": False})

    code: str = Field(examples=[code.value for code in ErrorCode])
    """Stable name; see the table of error codes. What a newer worker says may have one that stands in no table yet."""
    message: str
    """The fact, naming the field, file or value."""
    remedy: str
    """In English, or in Chinese where ``Accept-Language`` asks for it; one written for the very case is in English."""
    fields: dict[str, Any]
    """Facts for machines."""


class ErrorBody(BaseModel):
    """Body of every answer that is an error."""

    error: ErrorDetail


def status_of(error: PackagingError) -> int:
    """HTTP status of an error."""
    return error.code.http_status


def error_response(error: PackagingError, status: int, language: Language) -> JSONResponse:
    """The answer for an error, to a program; its remedy is in the language that was asked for, if it is a usual one."""
    headers = {"Content-Language": language.value, "Vary": "Accept-Language"}
    return JSONResponse({"error": plain(error.told(language).document())}, status, headers)


def error_headers(error: PackagingError, status: int) -> dict[str, str]:
    """Headers that belong to an error, whatever form its body has."""
    if status == 401:
        return {"WWW-Authenticate": 'Bearer realm="trainpack"'}
    wait_s = error.fields.get("retry_after_s")
    if isinstance(wait_s, int | float):
        return {"Retry-After": str(max(1, math.ceil(wait_s)))}
    return {"Retry-After": "5"} if status == 503 else {}


def plain(value: Any) -> Any:
    """JSON values only: what is foreign becomes text, what is not finite nothing, a lone surrogate its escape."""
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int) else str(value)


def from_validation(error: RequestValidationError) -> PackagingError:
    """A request that does not fit the schema, as the project's error; it names the first wrong field."""
    problems = error.errors()
    first = problems[0] if problems else {"loc": (), "msg": "is not valid", "type": ""}
    where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
    code = ErrorCode.UNKNOWN_FIELD if first["type"] == "extra_forbidden" else ErrorCode.REQUEST_INVALID
    reason = "is no field of it" if code is ErrorCode.UNKNOWN_FIELD else str(first["msg"]).removeprefix("Value error, ")
    return PackagingError(code, f"{where}: {reason}", fields={"field": where})


def from_http(error: HTTPException, request: Request) -> PackagingError:
    """An error of the framework: an unknown address, a method it has not."""
    if error.status_code in (404, 405):
        return PackagingError(
            ErrorCode.ADDRESS_NOT_FOUND,
            f"nothing answers {request.method} {one_line(request.url.path)[:200]}",
            fields={"method": request.method},
        )
    code = ErrorCode.INTERNAL_ERROR if error.status_code >= 500 else ErrorCode.REQUEST_INVALID
    return PackagingError(code, str(error.detail))


def allowed_methods(request: Request) -> list[str]:
    """The methods of all routes at the address of a request; the framework itself names those of the first one."""

    def answered(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return [method for method in _METHODS if answered(method)]


async def on_error(request: Request, error: Exception) -> Response:
    """Handler of every error of every route."""
    status = None
    if isinstance(error, RequestValidationError):
        problem = from_validation(error)
    elif isinstance(error, HTTPException):
        problem = from_http(error, request)
        # A body that is no JSON is as wrong as one that does not fit the schema.
        status = None if error.status_code == 400 else error.status_code
    elif isinstance(error, PackagingError):
        problem = error
    else:
        _log.error("%s %s failed", request.method, one_line(request.url.path), exc_info=error)
        problem = PackagingError(ErrorCode.INTERNAL_ERROR, "the console failed on this request; see its log")
    status = status or status_of(problem)
    headers = error_headers(problem, status)
    if status == 405:
        headers["Allow"] = ", ".join(allowed_methods(request))
    page = getattr(request.app.state, "error_page", None)
    if page is not None and wants_page(request):
        answer: Response = page(request, problem, status)
    else:
        answer = error_response(problem, status, accepted_language(request.headers.get("accept-language", "")))
    answer.headers.update(headers)
    return answer


def wants_page(request: Request) -> bool:
    """Whether the caller is a browser that shows a page, and not a program."""
    return not request.url.path.startswith(("/api/", "/health", "/metrics")) and "text/html" in request.headers.get(
        "accept", ""
    )
