"""What routes share, as dependencies: the settings and the client. Both live as long as the application."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from api_client.client import PackagingClient
from api_client.console.settings import ConsoleSettings


def get_settings(request: Request) -> ConsoleSettings:
    """The console's settings."""
    settings: ConsoleSettings = request.app.state.settings
    return settings


def get_client(request: Request) -> PackagingClient:
    """The one client of this console; it is synchronous and thread-safe, so use it from ``def`` routes."""
    client: PackagingClient = request.app.state.client
    return client


Settings = Annotated[ConsoleSettings, Depends(get_settings)]
Client = Annotated[PackagingClient, Depends(get_client)]
