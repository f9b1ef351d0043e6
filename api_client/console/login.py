"""Logging in and out in a browser: the form takes a token and gives a session cookie. The form itself is a page."""

from __future__ import annotations

import logging
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse

from api_client.console.admission import SESSION_COOKIE, Admission, address_of
from api_client.console.auth import known_principal
from api_client.console.context import Settings
from api_client.contract.errors import PackagingError

router = APIRouter(include_in_schema=False)
_log = logging.getLogger(__name__)


@router.post("/login")
async def log_in(
    request: Request, settings: Settings, token: Annotated[str, Form()] = "", to: Annotated[str, Form()] = "/"
) -> RedirectResponse:
    """Start a session and go on to ``to``; a wrong token goes back to ``/login?failed=CODE&to=...``."""
    admission: Admission = request.app.state.admission
    target = local_path(to)
    if settings.open:
        return RedirectResponse(target, 303)
    try:
        principal = admission.log_in(request, token.strip())
    except PackagingError as error:
        _log.warning("login from %s refused: %s", address_of(request), error.code.value)
        return RedirectResponse(f"/login?failed={error.code.value}&to={quote(target, safe='')}", 303)
    _log.info("%s logged in from %s", principal.name, address_of(request))
    answer = RedirectResponse(target, 303)
    answer.set_cookie(
        SESSION_COOKIE,
        admission.identities.start_session(principal),
        max_age=int(settings.session_hours * 3600),
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="lax",
    )
    return answer


@router.post("/logout")
async def log_out(request: Request) -> RedirectResponse:
    """End the session in this browser. Another site cannot do it: ``admission`` refuses what it sends."""
    principal = known_principal(request)
    if principal is not None:
        _log.info("%s logged out", principal.name)
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(SESSION_COOKIE, httponly=True, samesite="lax")
    return answer


def local_path(to: str) -> str:
    """The address to go on to, as far as it is one of this console; ``/`` where it leads elsewhere."""
    safe = to.startswith("/") and not to.startswith("//") and to.isprintable() and "\\" not in to
    return to if safe else "/"
