"""The language of a page: ``?lang``, the cookie, the console's setting, the browser's wish, in this order."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlencode, urlsplit

from fastapi import Request
from fastapi.responses import Response

from api_client.console.language import accepted_language
from api_client.console.pages.address import page_address
from api_client.words.language import Language

COOKIE = "trainpack_lang"
_YEAR_S = 365 * 86400


def page_language(request: Request) -> Language:
    """The language for one request; English where nothing says otherwise."""
    configured = getattr(getattr(request.app.state, "settings", None), "language", "auto")
    for wish in (request.query_params.get("lang"), request.cookies.get(COOKIE), configured):
        if wish in ("en", "zh"):
            return Language(wish)
    return accepted_language(request.headers.get("accept-language", ""))


def other_language(language: Language) -> Language:
    """The one to switch to."""
    return Language.EN if language is Language.ZH else Language.ZH


def switch_address(request: Request, language: Language) -> str:
    """Address of this very page in the other language; of the page with the form where this one answers it."""
    address = urlsplit(page_address(request))
    pairs = [(key, value) for key, value in parse_qsl(address.query) if key != "lang"]
    return f"{address.path}?{urlencode([*pairs, ('lang', other_language(language).value)])}"


def remember_language(request: Request, response: Response) -> None:
    """Keep a language that was asked for in the address."""
    wish = request.query_params.get("lang")
    if wish in ("en", "zh"):
        secure = request.url.scheme == "https"
        response.set_cookie(COOKIE, wish, max_age=_YEAR_S, samesite="lax", secure=secure, httponly=True)
