"""What operators change while the service runs: caps by label, pauses of queues and hosts, and who did it."""

from __future__ import annotations

import logging
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from api_client.console.api.documents import errors
from api_client.console.api.parameters import Operator, Reader
from api_client.console.context import Client
from api_client.contract.errors import ErrorCode
from api_client.contract.fleet import Change, LabelLimit, Pause

router = APIRouter(tags=["service"])
_log = logging.getLogger(__name__)
_INVALID = errors(ErrorCode.REQUEST_INVALID)

LabelName = Annotated[str, Path(description="A label (`team`) or one of its values (`team=red`).", max_length=264)]
Place = Annotated[str, Path(description="`queue:NAME` or `host:NAME`.", max_length=210)]


class LimitBody(BaseModel):
    """A cap."""

    model_config = ConfigDict(extra="forbid")

    limit: Annotated[int, Field(ge=1, le=1_000_000)] | Literal["none"]
    """Stages at once; `none`: no bound, whatever the workers were started with."""


class LimitList(BaseModel):
    """Caps in force."""

    limits: tuple[LabelLimit, ...]


class PauseList(BaseModel):
    """What is paused."""

    paused: tuple[Pause, ...]


class ChangeList(BaseModel):
    """Who changed what, newest first."""

    changes: tuple[Change, ...]


@router.get("/limits")
def list_limits(client: Client, _: Reader) -> LimitList:
    """How many stages may run at once, by label."""
    return LimitList(limits=tuple(client.limits()))


@router.put("/limits/{label}", responses=_INVALID)
def set_limit(label: LabelName, body: LimitBody, client: Client, principal: Operator) -> LimitList:
    """Set a cap for all workers at once. What runs goes on."""
    client.set_limit(label, body.limit, by=principal.name)
    _log.info("%s set the limit of %s to %s", principal.name, label, body.limit)
    return LimitList(limits=tuple(client.limits()))


@router.delete("/limits/{label}", responses=_INVALID)
def unset_limit(label: LabelName, client: Client, principal: Operator) -> LimitList:
    """Go back to what the workers were started with."""
    client.set_limit(label, None, by=principal.name)
    _log.info("%s took the limit of %s back", principal.name, label)
    return LimitList(limits=tuple(client.limits()))


@router.get("/pauses")
def list_pauses(client: Client, _: Reader) -> PauseList:
    """Queues and hosts that are paused."""
    return PauseList(paused=tuple(client.pauses()))


@router.put("/pauses/{place}", responses=_INVALID)
def pause_place(place: Place, client: Client, principal: Operator) -> PauseList:
    """Begin nothing new from a queue or on a host. What runs goes on."""
    client.pause(place, by=principal.name)
    _log.info("%s paused %s", principal.name, place)
    return PauseList(paused=tuple(client.pauses()))


@router.delete("/pauses/{place}", responses=_INVALID)
def resume_place(place: Place, client: Client, principal: Operator) -> PauseList:
    """Let a paused queue or host go on."""
    client.resume(place, by=principal.name)
    _log.info("%s resumed %s", principal.name, place)
    return PauseList(paused=tuple(client.pauses()))


@router.get("/changes")
def list_changes(client: Client, _: Reader, limit: Annotated[int, Query(ge=1, le=500)] = 50) -> ChangeList:
    """Who changed which cap or pause, newest first."""
    return ChangeList(changes=tuple(client.changes(limit)))
