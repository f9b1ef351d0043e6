"""Settings of the console, from ``TRAINPACK_CONSOLE_*`` environment variables; read once at start-up, frozen.

Where Redis and the object storage are comes from the variables that every command reads (``TRAINPACK_REDIS_URL``,
``TRAINPACK_KEY_PREFIX``, ``TRAINPACK_S3_*``), else from the running embedded stack.
"""

from __future__ import annotations

import ipaddress
import os
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, TypeAdapter, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from api_client.console.roles import Role
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.words.suggestions import did_you_mean, nearest

PREFIX = "TRAINPACK_CONSOLE_"
MIN_TOKEN_CHARACTERS = 16


class Token(BaseModel):
    """One bearer token: who holds it, what it may do, until when."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9._@-]{1,64}$")
    """Who holds it; stands in the log beside everything that was changed with it."""
    role: Role
    secret: SecretStr
    """What the client sends. At least 16 characters; ``openssl rand -hex 24`` makes a good one."""
    expires_at: datetime | None = None
    """After this time it is refused with ``token_expired``. Without a zone: UTC."""

    @field_validator("secret")
    @classmethod
    def _long_enough(cls, value: SecretStr) -> SecretStr:
        text = value.get_secret_value()
        if len(text) < MIN_TOKEN_CHARACTERS or not text.isascii() or any(c.isspace() for c in text):
            raise ValueError(f"a secret needs {MIN_TOKEN_CHARACTERS} or more ASCII characters without blanks")
        return value

    @field_validator("expires_at")
    @classmethod
    def _with_zone(cls, value: datetime | None) -> datetime | None:
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


class ConsoleSettings(BaseSettings):
    """All settings of one console."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    host: str = "127.0.0.1"
    """Address to listen on. Without tokens only a loopback address is accepted."""
    port: int = Field(default=8321, ge=0, le=65535)
    """Port to listen on. 0: a free one."""
    tokens: tuple[Token, ...] = ()
    """Tokens as JSON: ``[{"name": "ops", "role": "operate", "secret": "..."}]``. None at all: no login."""
    tokens_file: Path | None = None
    """TOML file with ``[[tokens]]`` tables of the same fields; keep it readable for the console's user only."""
    session_key: SecretStr | None = Field(default=None, min_length=MIN_TOKEN_CHARACTERS)
    """Key that signs session cookies. Unset: random, so that a restart ends sessions; set it for several replicas."""
    session_hours: float = Field(default=12.0, gt=0, le=24 * 30)
    """How long a login in the browser lasts."""
    allowed_hosts: Annotated[tuple[str, ...] | None, NoDecode] = None
    """Host names that requests may be addressed to (comma-separated). Unset: any with tokens, loopback without.

    Health probes, and programs that send a token, may ask by any name.
    """
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = ()
    """Addresses of reverse proxies whose ``X-Forwarded-*`` headers are believed (comma-separated)."""
    requests_per_minute: int = Field(default=600, ge=1)
    """Requests of one token, or of one address without token. Low: pages that refresh themselves are held up."""
    failed_logins_per_minute: int = Field(default=10, ge=1)
    """Wrong tokens from one address before it has to wait."""
    max_body_bytes: int = Field(default=2**20, ge=1024)
    """Largest request body."""
    max_connections: int = Field(default=1000, ge=8)
    """Connections open at once; less where the process may open fewer files. Full: those that only wait give way."""
    max_connections_each: int = Field(default=100, ge=2)
    """Connections that one address may have open; addresses of trusted proxies have no such bound."""
    header_s: float = Field(default=10.0, gt=0, le=300)
    """Longest time for the header of a request. Low: slow lines are cut off; high: half-sent headers hold places."""
    body_s: float = Field(default=30.0, gt=0, le=3600)
    """Longest time for the body of a request."""
    unread_s: float = Field(default=30.0, gt=0, le=3600)
    """Longest time in which a client reads nothing of its answer. Low: downloads that stall are cut off; high: clients
    that never read hold places."""
    max_streams: int = Field(default=100, ge=1)
    """Event streams open at once. Each idle one asks Redis about once a second."""
    max_streams_each: int = Field(default=20, ge=1)
    """Event streams that one token, or one address without token, may have open at once."""
    redis_timeout_s: float = Field(default=5.0, gt=0, le=60)
    """Longest wait for Redis in one request."""
    question_timeout_s: float = Field(default=30.0, gt=0, le=120)
    """Longest wait for a worker's answer to a question about files."""
    link_s: int = Field(default=900, ge=1, le=7 * 86400)
    """How long a download link is valid."""
    s3_public_endpoint_url: str | None = None
    """Address of the object storage as browsers see it, for download links. Unset: the one that the console uses."""
    language: Literal["auto", "en", "zh"] = "auto"
    """Language of the pages. ``auto``: as the browser asks."""

    @field_validator("allowed_hosts", "trusted_proxies", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return tuple(part.strip().lower() for part in value.split(",") if part.strip())

    @property
    def open(self) -> bool:
        """Whether there is no login: everyone who reaches the address may do everything."""
        return not self.tokens

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches the address."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def load_console_settings(environment: Mapping[str, str] | None = None, **overrides: Any) -> ConsoleSettings:
    """Read the settings and the tokens file.

    Args:
        environment: Checked for misspelt names; the process's environment where not given.
        overrides: Values that win over the environment; ``None`` stands for not given.

    Raises:
        PackagingError: ``settings_invalid``, naming the variable; also for an address that is no loopback without
            tokens.
    """
    _refuse_unknown(os.environ if environment is None else environment)
    try:
        settings = ConsoleSettings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        raise _invalid(error, "") from None  # the chained error would show a token's secret
    tokens = (*settings.tokens, *(_read_tokens(settings.tokens_file) if settings.tokens_file else ()))
    settings = settings.model_copy(update={"tokens": tokens})
    _check(settings)
    return settings


def _refuse_unknown(environment: Mapping[str, str]) -> None:
    known = {PREFIX + name.upper() for name in ConsoleSettings.model_fields}
    for name in environment:
        if name.startswith(PREFIX) and name not in known:
            reason = f"unknown setting {name}{did_you_mean(nearest(name, known))}"
            raise PackagingError(ErrorCode.SETTINGS_INVALID, reason, fields={"setting": name})


def _read_tokens(path: Path) -> tuple[Token, ...]:
    name = f"{PREFIX}TOKENS_FILE"
    try:
        content = tomllib.loads(path.read_text("utf-8"))
        tokens = TypeAdapter(tuple[Token, ...]).validate_python(content.get("tokens", ()))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PackagingError(ErrorCode.SETTINGS_INVALID, f"{name}: {path}: {error}", fields={"setting": name}) from None
    except ValidationError as error:
        raise _invalid(error, f"tokens_file.{path}") from None
    if not tokens:
        raise PackagingError(
            ErrorCode.SETTINGS_INVALID, f"{name}: {path} has no [[tokens]] table", fields={"setting": name}
        )
    return tokens


def _invalid(error: ValidationError, within: str) -> PackagingError:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(part for part in (within, *map(str, first["loc"])) if part)
    reason = str(first["msg"]).removeprefix("Value error, ")
    setting = PREFIX + where.partition(".")[0].upper()
    return PackagingError(
        ErrorCode.SETTINGS_INVALID, f"{setting} ({where}): {reason}", fields={"setting": setting, "where": where}
    )


def _check(settings: ConsoleSettings) -> None:
    names = [token.name for token in settings.tokens]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise PackagingError(
            ErrorCode.SETTINGS_INVALID, f"two tokens are named {twice!r}", fields={"setting": f"{PREFIX}TOKENS"}
        )
    if settings.open and not settings.loopback:
        raise PackagingError(
            ErrorCode.SETTINGS_INVALID,
            f"the console would listen on {settings.host} with no token set, open to everyone who reaches it",
            remedy=f"Set {PREFIX}TOKENS or {PREFIX}TOKENS_FILE, or listen on 127.0.0.1.",
            fields={"setting": f"{PREFIX}HOST", "host": settings.host},
        )
