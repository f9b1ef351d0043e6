"""Who asks: tokens, sessions, their ends, and limits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from api_client.console.identity import Identities
from api_client.console.limits import RateLimit, StreamLimit
from api_client.console.settings import Token
from api_client.contract.errors import ErrorCode, PackagingError

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = b"a key for sessions"


def token(name: str = "ops", secret: str = "0123456789abcdef", expires_at: datetime | None = None) -> Token:
    return Token.model_validate({"name": name, "role": "submit", "secret": secret, "expires_at": expires_at})


def identities(*tokens: Token, key: bytes | None = KEY) -> Identities:
    return Identities(tokens or (token(),), key, 3600)


def code_of(action: object, *arguments: object) -> ErrorCode:
    with pytest.raises(PackagingError) as caught:
        action(*arguments)  # type: ignore[operator]
    return caught.value.code


def test_a_token_is_known_by_its_secret_until_it_expires() -> None:
    known = identities(token(expires_at=NOW), token("other", "fedcba9876543210"))
    assert known.from_token("0123456789abcdef", NOW - timedelta(seconds=1)).name == "ops"
    assert known.from_token("fedcba9876543210", NOW).name == "other"
    assert code_of(known.from_token, "0123456789abcdef", NOW) is ErrorCode.TOKEN_EXPIRED
    for wrong in ("", "0123456789abcdeF", "0123456789abcdef ", "中", "\udcff"):
        assert code_of(known.from_token, wrong, NOW) is ErrorCode.UNAUTHENTICATED


def test_a_session_ends_with_its_time_and_with_its_token() -> None:
    known = identities(token(expires_at=NOW + timedelta(minutes=30)))
    cookie = known.start_session(known.from_token("0123456789abcdef", NOW), NOW)
    principal = known.from_session(cookie, NOW)
    assert (principal.name, principal.via, len(principal.csrf_token)) == ("ops", "session", 64)
    assert code_of(known.from_session, cookie, NOW + timedelta(minutes=31)) is ErrorCode.TOKEN_EXPIRED
    longer = identities(token())
    assert longer.from_session(cookie, NOW + timedelta(minutes=59)).name == "ops"
    assert code_of(longer.from_session, cookie, NOW + timedelta(hours=1)) is ErrorCode.TOKEN_EXPIRED
    changed = identities(token(secret="another-secret-here"))
    assert code_of(changed.from_session, cookie, NOW) is ErrorCode.UNAUTHENTICATED
    assert code_of(identities(token("x")).from_session, cookie, NOW) is ErrorCode.UNAUTHENTICATED
    assert code_of(identities(key=None).from_session, cookie, NOW) is ErrorCode.UNAUTHENTICATED


def test_a_forged_session_is_refused() -> None:
    known = identities()
    cookie = known.start_session(known.from_token("0123456789abcdef", NOW), NOW)
    name, fingerprint, ends, nonce, signature = cookie.split("|")
    for forged in (
        "",
        "|||||",
        "x",
        "\udcff|",
        "|".join((name, fingerprint, str(int(ends) + 1), nonce, signature)),
        "|".join((name, fingerprint, ends, nonce, "0" * 64)),
        "|".join((name, fingerprint, ends, nonce, known.from_session(cookie, NOW).csrf_token)),
    ):
        assert code_of(known.from_session, forged, NOW) is ErrorCode.UNAUTHENTICATED


def test_sessions_of_one_token_have_csrf_tokens_of_their_own() -> None:
    known = identities()
    principal = known.from_token("0123456789abcdef", NOW)
    tokens = {known.from_session(known.start_session(principal, NOW), NOW).csrf_token for _ in range(3)}
    assert len(tokens) == 3


def test_a_minute_s_worth_may_come_at_once_and_then_as_it_fills() -> None:
    now = [0.0]
    limit = RateLimit(60, lambda: now[0])
    for _ in range(60):
        limit.take("a")
    with pytest.raises(PackagingError) as caught:
        limit.take("a")
    assert caught.value.code is ErrorCode.RATE_LIMITED
    assert caught.value.fields["retry_after_s"] == 1.0
    limit.take("b")
    now[0] = 2.0
    limit.take("a")
    limit.take("a")
    assert code_of(limit.take, "a") is ErrorCode.RATE_LIMITED


def test_callers_are_forgotten_when_there_are_too_many() -> None:
    limit = RateLimit(1, lambda: 0.0)
    limit.take("first")
    for number in range(10_000):
        limit.take(str(number))
    limit.take("first")


def test_streams_are_counted_and_let_go() -> None:
    streams = StreamLimit(3, 2)
    with streams.one("a"), streams.one("a"):
        assert code_of(streams.one("a").__enter__) is ErrorCode.RATE_LIMITED
        with streams.one("b"):
            assert streams.open == 3
            assert code_of(streams.one("c").__enter__) is ErrorCode.RATE_LIMITED
        with streams.one("c"):
            assert streams.open == 3
    assert streams.open == 0
