"""The login page, and errors as pages of the same design."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from api_client.console.auth import known_principal
from api_client.console.login import local_path
from api_client.console.pages.address import page_address
from api_client.console.pages.language import page_language
from api_client.console.pages.view import render
from api_client.contract.errors import ErrorCode, Failure, PackagingError

router = APIRouter(include_in_schema=False)

_HEADS: Final = {
    ErrorCode.UNAUTHENTICATED: "error.401",
    ErrorCode.TOKEN_EXPIRED: "error.expired",
    ErrorCode.PERMISSION_DENIED: "error.403",
    ErrorCode.CSRF_FAILED: "error.403",
    ErrorCode.ADDRESS_NOT_FOUND: "error.404",
    ErrorCode.JOB_NOT_FOUND: "error.job",
    ErrorCode.REDIS_UNREACHABLE: "error.unreachable",
    ErrorCode.REDIS_NO_WRITES: "error.no_writes",
    ErrorCode.RATE_LIMITED: "error.429",
}


@router.get("/login")
def login_page(request: Request, failed: str = "", to: str = "/jobs") -> Response:
    """The form that takes a token; who is logged in goes on."""
    if known_principal(request) is not None and not failed:
        return RedirectResponse(local_path(to), 303)
    refused = None
    if failed in list(ErrorCode):
        refused = Failure(ErrorCode(failed), "").told(page_language(request))
    return render(request, "login.html", {"to": local_path(to), "refused": refused, "head": "login_head"})


def error_page(request: Request, error: PackagingError, status: int) -> Response:
    """An error for a browser: the login form where a login is all it takes, else what happened and what to do."""
    problem = error.told(page_language(request))
    head = _HEADS.get(error.code, "error.other")
    if status == 401:
        return render(request, "login.html", {"to": page_address(request), "refused": None, "head": head}, status)
    return render(request, "error.html", {"problem": problem, "head": head, "status": status}, status)
