"""Where a page is shown by itself: its own address, or for the answer to a form the page that the form was on."""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import Request

from api_client.console.auth import SAFE_METHODS
from api_client.console.login import local_path


def page_address(request: Request) -> str:
    """Path and query of the page, for links that lead back to it; the jobs page where it cannot be known."""
    if request.method in SAFE_METHODS:
        path, query = request.url.path, request.url.query
    else:
        referer = urlsplit(request.headers.get("referer", ""))
        if referer.netloc != request.headers.get("host", ""):
            return "/jobs"
        path, query = referer.path or "/jobs", referer.query
    return local_path(f"{path}?{query}" if query else path)
