"""Rendering: the Jinja environment, the filters that templates use, and what every page knows."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from api_client.console.auth import known_principal
from api_client.console.pages.address import page_address
from api_client.console.pages.language import other_language, page_language, remember_language, switch_address
from api_client.console.pages.texts import text
from api_client.console.roles import Role
from api_client.contract.outputs import named_run
from api_client.words.figures import format_kld, format_share
from api_client.words.formatting import (
    clean,
    format_age,
    format_amount,
    format_duration,
    format_progress,
    format_rate,
    format_score,
    format_size,
    format_time,
    one_line,
)
from api_client.words.language import Language
from api_client.words.log_messages import log_message
from api_client.words.states import state_word

_TEMPLATES = Path(__file__).parent / "templates"


def show_time(when: datetime | None) -> Markup:
    """A time as a ``time`` element in the zone that the page's foot names."""
    if when is None:
        return Markup("")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        when.isoformat(), when.astimezone().isoformat(timespec="seconds"), format_time(when)
    )


def utc_offset_minutes(now: datetime | None = None) -> int:
    """Minutes by which shown times are ahead of UTC, for the script that adds lines to a log."""
    offset = (now or datetime.now(UTC)).astimezone().utcoffset()
    return int(offset.total_seconds() // 60) if offset else 0


def code_spans(plain: str) -> Markup:
    """A text of the tables, with what stands in backquotes as code."""
    parts = str(escape(plain)).split("`")
    return Markup("".join(f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts)))


@functools.cache
def environment() -> Environment:
    """The templates' environment. Autoescape is on, and an unknown name is an error."""
    templates = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(
        age=format_age,
        amount=format_amount,
        clean=clean,
        code_spans=code_spans,
        duration=format_duration,
        kld=format_kld,
        line=one_line,
        progress=format_progress,
        rate=format_rate,
        score=format_score,
        share=format_share,
        size=format_size,
        upfirst=lambda word: word[:1].upper() + word[1:],
        when=show_time,
    )
    return templates


def render(request: Request, template: str, context: Mapping[str, Any], status: int = 200) -> HTMLResponse:
    """Render a page for whoever asks, in their language."""
    language = page_language(request)
    principal = known_principal(request)
    known: dict[str, Any] = {
        "t": functools.partial(text, language),
        "word": functools.partial(state_word, language),
        "choose": language.choose,
        "named_run": named_run,
        "told": functools.partial(log_message, language),
        "language": language.value,
        "lang_tag": "zh-Hans" if language is Language.ZH else "en",
        "other_lang": other_language(language).value,
        "switch": switch_address(request, language),
        "principal": principal,
        "may_submit": principal is not None and principal.role.covers(Role.SUBMIT),
        "may_operate": principal is not None and principal.role.covers(Role.OPERATE),
        "csrf": principal.csrf_token if principal else "",
        "zone": time.strftime("%Z (UTC%z)"),
        "here": request.url.path,
        "shown_at": page_address(request),
    }
    page = HTMLResponse(environment().get_template(template).render({**known, **context}), status)
    page.headers["Vary"] = "Accept-Language, Cookie"
    page.headers["Content-Language"] = language.value
    remember_language(request, page)
    return page
