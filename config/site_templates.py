"""Site templates: read from a TOML file, checked like the built-in ones, published to Redis by workers."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.request import PackagingRequest
from api_client.contract.rules import resolve_options
from api_client.contract.templates import BUILTIN_TEMPLATES, SiteTemplate, Template
from api_client.ledger.keys import Keys
from api_client.ledger.text_redis import TextRedis
from api_client.words.suggestions import did_you_mean, nearest


def load_site_templates(path: Path | None) -> dict[str, Template]:
    """Read and check the templates of a file; the shipped one where ``path`` is ``None``.

    Raises:
        PackagingError: ``settings_invalid``, naming file, template and reason.
    """
    source = str(path or "config/templates.toml")
    try:
        text = path.read_text("utf-8") if path else files("config").joinpath("templates.toml").read_text("utf-8")
        tables = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise _invalid(source, str(error)) from error
    return {name: _template(source, name, table) for name, table in tables.items()}


def _template(source: str, name: str, table: Any) -> Template:
    if name in BUILTIN_TEMPLATES:
        raise _invalid(source, f"[{name}] has the name of a built-in template")
    if not isinstance(table, dict):
        raise _invalid(source, f"{name!r} stands outside a [template] table")
    try:
        template = Template.model_validate({"name": name, **table})
        resolve_options(PackagingRequest(template=SiteTemplate(name)), template)
    except ValidationError as error:
        raise _invalid(source, f"[{name}] {_reason(error)}") from error
    except PackagingError as error:
        raise _invalid(source, f"[{name}] {error.message}") from error
    return template


def _reason(error: ValidationError) -> str:
    """The first complaint; a misspelt key before the one that is missing because of it."""
    errors = error.errors(include_url=False)
    first = next((problem for problem in errors if problem["type"] == "extra_forbidden"), errors[0])
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        suggestion = nearest(where, Template.model_fields, 0.5)
        return f"unknown key {where!r}" + did_you_mean(suggestion, quoted=True)
    if first["type"] == "quant_type":
        return str(first["msg"])
    return f"{where}: {first['msg']}"


def _invalid(source: str, reason: str) -> PackagingError:
    return PackagingError(ErrorCode.SETTINGS_INVALID, f"{source}: {reason}", fields={"file": source})


def publish_site_templates(redis: TextRedis, keys: Keys, templates: dict[str, Template]) -> None:
    """Make these the site's templates: clients see them, and no others that were published before.

    Defaults are left out: a client of before, without a new field, can still read templates that do not use it.
    """
    stored = {name: template.model_dump_json(exclude_defaults=True) for name, template in templates.items()}
    pipe = redis.pipeline(transaction=True)
    pipe.delete(keys.named("templates"))
    if stored:
        pipe.hset(keys.named("templates"), mapping=stored)
    pipe.execute()
