"""Settings of the console: tokens, addresses, what is refused before anything listens."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from api_client.console.roles import Role
from api_client.console.settings import is_loopback, load_console_settings
from api_client.contract.errors import ErrorCode, PackagingError
from config.settings import load_settings

SECRET = "a-secret-of-some-length"
OPS = {"name": "ops", "role": "operate", "secret": SECRET}


def refused(environment: dict[str, str] | None = None, **overrides: Any) -> PackagingError:
    with pytest.raises(PackagingError) as caught:
        load_console_settings(environment or {}, **overrides)
    assert caught.value.code is ErrorCode.SETTINGS_INVALID
    assert SECRET not in str(caught.value)
    return caught.value


def test_the_default_is_open_on_loopback() -> None:
    settings = load_console_settings({})
    assert (settings.host, settings.port, settings.open, settings.loopback) == ("127.0.0.1", 8321, True, True)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.com"])
def test_other_addresses_need_a_token(host: str) -> None:
    error = refused(host=host)
    assert host in error.message
    assert "TRAINPACK_CONSOLE_TOKENS" in error.remedy
    assert load_console_settings({}, host=host, tokens=[OPS]).open is False


@pytest.mark.parametrize(
    ("host", "loopback"), [("localhost", True), ("127.8.0.1", True), ("::1", True), ("127.1", False)]
)
def test_loopback_is_told_by_address(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_the_environment_is_read_and_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = f'[{{"name": "ops", "role": "operate", "secret": "{SECRET}", "expires_at": "2030-01-01T00:00:00"}}]'
    monkeypatch.setenv("TRAINPACK_CONSOLE_TOKENS", tokens)
    monkeypatch.setenv("TRAINPACK_CONSOLE_ALLOWED_HOSTS", "Pack.example.com, localhost")
    monkeypatch.setenv("TRAINPACK_CONSOLE_TRUSTED_PROXIES", "10.0.0.7")
    settings = load_console_settings()
    assert settings.allowed_hosts == ("pack.example.com", "localhost")
    assert settings.trusted_proxies == ("10.0.0.7",)
    assert settings.tokens[0].expires_at == datetime(2030, 1, 1, tzinfo=UTC)
    assert settings.tokens[0].secret.get_secret_value() == SECRET
    assert SECRET not in repr(settings)
    load_settings()  # a worker that shares the environment is not disturbed


def test_misspelt_names_are_refused_with_a_suggestion() -> None:
    assert "did you mean TRAINPACK_CONSOLE_TOKENS_FILE?" in refused({"TRAINPACK_CONSOLE_TOKEN_FILE": "x"}).message


def test_tokens_come_from_a_file_too(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text(
        f'[[tokens]]\nname = "ci"\nrole = "submit"\nsecret = "{SECRET}"\nexpires_at = 2030-01-01T00:00:00Z\n'
    )
    settings = load_console_settings({}, tokens=[OPS], tokens_file=file)
    assert [(token.name, token.role) for token in settings.tokens] == [("ops", Role.OPERATE), ("ci", Role.SUBMIT)]
    assert settings.tokens[1].expires_at == datetime(2030, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "not toml",
        "tokens = 3",
        '[[tokens]]\nname = "x"\n',
        f'[[tokens]]\nname = "x"\nrole = "root"\nsecret = "{SECRET}"\n',
    ],
)
def test_a_file_without_a_token_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text(content)
    assert "TRAINPACK_CONSOLE_TOKENS_FILE" in refused(tokens_file=file).message


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "none.toml" in refused(tokens_file=tmp_path / "none.toml").message


@pytest.mark.parametrize(
    "change",
    [{"secret": "short"}, {"secret": f"{SECRET} x"}, {"name": "a|b"}, {"role": "root"}, {"expires": "2030-01-01"}],
)
def test_a_token_that_cannot_work_is_refused(change: dict[str, str]) -> None:
    assert "TRAINPACK_CONSOLE_TOKENS" in refused(tokens=[OPS | change]).message


def test_two_tokens_of_one_name_and_a_short_session_key_are_refused() -> None:
    assert "'ops'" in refused(tokens=[OPS, OPS | {"secret": SECRET + "2"}]).message
    assert "SESSION_KEY" in refused(session_key="short").message


def test_roles_include_the_ones_before_them() -> None:
    assert [[one.covers(other) for other in Role] for one in Role] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]
