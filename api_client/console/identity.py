"""Who asks: bearer tokens and signed session cookies. Pure; ``gate`` calls it for every request.

A session cookie names a token and ends with it: it carries a fingerprint of the token's secret, so a secret that was
changed ends its sessions. It is signed with HMAC-SHA-256; nothing about a session is stored on the server.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from api_client.console.roles import Role
from api_client.console.settings import Token
from api_client.contract.errors import ErrorCode, PackagingError

_FINGERPRINT_CHARACTERS = 16


@dataclass(frozen=True)
class Principal:
    """Who asks, as far as the console knows.

    Attributes:
        name: Name of the token; ``local`` where there is no login.
        role: What it may do.
        via: ``token`` (Authorization header), ``session`` (cookie) or ``open`` (no login on this console).
        csrf_token: What a form of this session must send back as ``csrf_token``; empty where none is needed.
    """

    name: str
    role: Role
    via: Literal["token", "session", "open"]
    csrf_token: str = ""


LOCAL = Principal("local", Role.OPERATE, "open")
"""Everyone, on a console without tokens."""


class Identities:
    """The tokens of one console and its key for sessions."""

    def __init__(self, tokens: Sequence[Token], session_key: bytes | None, session_s: float) -> None:
        self._tokens = {token.name: token for token in tokens}
        self._digests = {token.name: _digest(token.secret.get_secret_value()) for token in tokens}
        self._key = session_key or secrets.token_bytes(32)
        self._session_s = session_s

    def from_token(self, secret: str, now: datetime | None = None) -> Principal:
        """Who holds a token.

        Raises:
            PackagingError: ``unauthenticated``, ``token_expired``.
        """
        given, matching = _digest(secret), None
        for name, digest in self._digests.items():  # all of them, so that the time says nothing
            if hmac.compare_digest(given, digest):
                matching = self._tokens[name]
        if matching is None:
            raise PackagingError(ErrorCode.UNAUTHENTICATED, "the token is not known")
        return self._principal(matching, "token", now or datetime.now(UTC))

    def start_session(self, principal: Principal, now: datetime | None = None) -> str:
        """Cookie value of a new session for the holder of a token."""
        ends_at = int((now or datetime.now(UTC)).timestamp() + self._session_s)
        body = f"{principal.name}|{self._fingerprint(principal.name)}|{ends_at}|{secrets.token_hex(8)}"
        return f"{body}|{self._sign('session', body)}"

    def from_session(self, cookie: str, now: datetime | None = None) -> Principal:
        """Who a session belongs to.

        Raises:
            PackagingError: ``unauthenticated``, ``token_expired``.
        """
        now = now or datetime.now(UTC)
        body, _, signature = cookie.rpartition("|")
        if not _same(signature, self._sign("session", body)):
            raise PackagingError(ErrorCode.UNAUTHENTICATED, "the session is not known; a restart ends it")
        name, fingerprint, ends_at, _ = body.split("|")
        if name not in self._tokens or not _same(fingerprint, self._fingerprint(name)):
            raise PackagingError(ErrorCode.UNAUTHENTICATED, "the token of this session was withdrawn")
        if now.timestamp() >= int(ends_at):
            raise PackagingError(ErrorCode.TOKEN_EXPIRED, "the session has ended", fields={"name": name})
        return self._principal(self._tokens[name], "session", now, self._sign("csrf", body))

    def _principal(self, token: Token, via: Literal["token", "session"], now: datetime, csrf: str = "") -> Principal:
        if token.expires_at is not None and now >= token.expires_at:
            raise PackagingError(
                ErrorCode.TOKEN_EXPIRED,
                f"the token {token.name!r} expired at {token.expires_at:%Y-%m-%d %H:%M} UTC",
                fields={"name": token.name, "expired_at": token.expires_at.isoformat()},
            )
        return Principal(token.name, token.role, via, csrf)

    def _fingerprint(self, name: str) -> str:
        return hmac.new(self._key, b"token|" + self._digests[name], "sha256").hexdigest()[:_FINGERPRINT_CHARACTERS]

    def _sign(self, purpose: str, body: str) -> str:
        return hmac.new(self._key, f"{purpose}|{body}".encode("utf-8", "surrogatepass"), "sha256").hexdigest()


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), expected.encode())
