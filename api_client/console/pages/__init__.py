"""The web console's pages: server-rendered, with a little script. ``routes`` is what the application includes."""

from __future__ import annotations

from api_client.console.pages.routes import error_page, router

__all__ = ["error_page", "router"]
