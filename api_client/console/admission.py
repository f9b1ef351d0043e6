"""Whether a request may come in: to which host it is addressed, from which site it was sent, who asks, how often."""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import Request

from api_client.console.auth import SAFE_METHODS
from api_client.console.identity import LOCAL, Identities, Principal
from api_client.console.limits import RateLimit
from api_client.console.settings import ConsoleSettings
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.words.formatting import one_line

SESSION_COOKIE = "trainpack_session"
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
_STATIC = "/static/"
_PROBES = frozenset({"/health", "/health/live"})
"""What orchestrators ask by whatever address a container has just been given."""
_SHOWN_CHARACTERS = 100


class Admission:
    """The decisions of one console; ``gate`` asks for them, ``login`` for the last one."""

    def __init__(self, settings: ConsoleSettings) -> None:
        key = settings.session_key.get_secret_value().encode() if settings.session_key else None
        self.identities = Identities(settings.tokens, key, settings.session_hours * 3600)
        self._open = settings.open
        self._requests = RateLimit(settings.requests_per_minute)
        self._failures = RateLimit(settings.failed_logins_per_minute)
        # Without a login the name is what keeps a web page from reaching this address by a name of its own (DNS
        # rebinding); with one, the session cookie belongs to one name anyway. A token no web page can send, so programs
        # that hold one (Prometheus, by a pod's address) may ask by any name.
        self._hosts = settings.allowed_hosts or ((*LOOPBACK_HOSTS, settings.host) if settings.open else None)

    def admit(self, request: Request) -> Principal | PackagingError:
        """Who asks, or why that is not known; only routes that need to know refuse for it.

        Raises:
            PackagingError: ``host_not_allowed``, ``csrf_failed``, ``rate_limited``.
        """
        identity = self._identify(request)
        if not (isinstance(identity, Principal) and identity.via == "token"):
            self._check_host(request)
        check_origin(request)
        if not request.url.path.startswith(_STATIC):
            self._requests.take(caller_of(request, identity))
        return identity

    def log_in(self, request: Request, secret: str) -> Principal:
        """The holder of a token. Wrong ones are counted for the address they come from; a right one is always let in.

        Otherwise one program that still sends an expired token would lock out everybody behind the same proxy. Tokens
        are too long to be guessed at any rate.

        Raises:
            PackagingError: ``unauthenticated``, ``token_expired``, ``rate_limited``.
        """
        try:
            return self.identities.from_token(secret)
        except PackagingError:
            self._failures.take(address_of(request))
            raise

    def _check_host(self, request: Request) -> None:
        if request.url.path in _PROBES:
            return
        host = request.headers.get("host", "")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if self._hosts is not None and name.lower() not in self._hosts:
            shown = one_line(name)[:_SHOWN_CHARACTERS]
            raise PackagingError(
                ErrorCode.HOST_NOT_ALLOWED, f"the console does not answer to {shown!r}", fields={"host": shown}
            )

    def _identify(self, request: Request) -> Principal | PackagingError:
        if self._open:
            return LOCAL
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        cookie = request.cookies.get(SESSION_COOKIE)
        try:
            if scheme.lower() == "bearer":
                return self.log_in(request, secret.strip())
            if cookie:
                return self.identities.from_session(cookie)
        except PackagingError as error:
            return error
        return PackagingError(ErrorCode.UNAUTHENTICATED, "no token was sent")


def check_origin(request: Request) -> None:
    """Refuse what a page of another site sends; browsers say with every such request where it comes from.

    Raises:
        PackagingError: ``csrf_failed``.
    """
    origin = request.headers.get("origin")
    if request.method in SAFE_METHODS or origin is None:
        return
    if urlsplit(origin).netloc.lower() != request.headers.get("host", "").lower():
        shown = one_line(origin)[:_SHOWN_CHARACTERS]
        raise PackagingError(ErrorCode.CSRF_FAILED, f"a page of {shown} may not send this", fields={"origin": shown})


def address_of(request: Request) -> str:
    """Where a request comes from, for limits and the log."""
    return f"address {request.client.host}" if request.client else "address unknown"


def caller_of(request: Request, identity: Principal | PackagingError) -> str:
    """Whom limits count: the token, else the address."""
    if isinstance(identity, Principal) and identity.via != "open":
        return f"token {identity.name}"
    return address_of(request)
