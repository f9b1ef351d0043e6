"""The REST routes, all under ``/api/v1``. They turn a request into one call of the client and its models into JSON."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from fastapi.security import HTTPBearer

from api_client.console.api import choices, controls, events, fleet, jobs, outputs, tasks
from api_client.console.api.documents import COMMON_ERRORS

PREFIX = "/api/v1"

# Tokens are checked by ``gate``; this writes them into the OpenAPI document.
_bearer = HTTPBearer(auto_error=False, description="A token of this console. Not needed where it has no login.")

router = APIRouter(prefix=PREFIX, dependencies=[Depends(_bearer)], responses=COMMON_ERRORS)
for part in (jobs, events, outputs, tasks, choices, fleet, controls):
    router.include_router(part.router)
