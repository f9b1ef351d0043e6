"""The dependency of every route: who asks, and whether they may. ``gate`` has identified them before.

Use ``Depends(require(Role.READ))``; it gives the :class:`Principal`. Requests that change something and were sent with
a session cookie must bring the session's CSRF token, in the form field ``csrf_token`` or the header ``X-CSRF-Token``.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable

from fastapi import Request

from api_client.console.identity import Principal
from api_client.console.roles import Role
from api_client.contract.errors import ErrorCode, PackagingError

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
CSRF_FIELD = "csrf_token"
CSRF_HEADER = "x-csrf-token"
_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")


def require(role: Role) -> Callable[[Request], Awaitable[Principal]]:
    """A dependency that lets through who has the role.

    Raises:
        PackagingError: ``unauthenticated``, ``token_expired``, ``permission_denied``, ``csrf_failed``.
    """

    async def check(request: Request) -> Principal:
        principal = principal_of(request)
        if not principal.role.covers(role):
            raise PackagingError(
                ErrorCode.PERMISSION_DENIED,
                f"{principal.name} has the role {principal.role.value}; this needs {role.value}",
                fields={"name": principal.name, "role": principal.role.value, "needed": role.value},
            )
        if principal.via == "session" and request.method not in SAFE_METHODS:
            await _check_csrf(request, principal)
        return principal

    return check


def principal_of(request: Request) -> Principal:
    """Who asks.

    Raises:
        PackagingError: ``unauthenticated``, ``token_expired``.
    """
    identity: Principal | PackagingError = request.state.identity
    if isinstance(identity, PackagingError):
        raise identity
    return identity


def known_principal(request: Request) -> Principal | None:
    """Who asks, where that is known; for pages that are shown to everyone."""
    identity: Principal | PackagingError | None = getattr(request.state, "identity", None)
    return identity if isinstance(identity, Principal) else None


async def _check_csrf(request: Request, principal: Principal) -> None:
    given: object = request.headers.get(CSRF_HEADER)
    if given is None and request.headers.get("content-type", "").startswith(_FORMS):
        given = (await request.form()).get(CSRF_FIELD)
    sent = given.encode("utf-8", "surrogatepass") if isinstance(given, str) else b""
    if not hmac.compare_digest(sent, principal.csrf_token.encode()):
        raise PackagingError(ErrorCode.CSRF_FAILED, "the form does not belong to this session")
