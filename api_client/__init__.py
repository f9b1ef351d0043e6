"""The contract and the client of trainpack: requests, jobs, events, errors, and ``PackagingClient``.

Light to import: nothing of Celery, Redis or the worker is loaded before it is used. Reading order: ``request`` ->
``rules`` -> ``plan`` -> ``client`` -> ``store``; the worker's side begins in ``worker.tasks``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from api_client.client import PackagingClient
    from api_client.errors import ErrorClass, ErrorCode, PackagingError
    from api_client.events import Event, EventKind
    from api_client.fleet import HealthInfo, QueueInfo, WorkerInfo
    from api_client.job import (
        Artifact,
        ArtifactKind,
        Attempt,
        AttemptOutcome,
        Job,
        JobState,
        Progress,
        Stage,
        StageName,
        StageState,
    )
    from api_client.quant_types import QUANT_TYPES, QuantType
    from api_client.request import ImatrixOptions, Options, PackagingRequest, RequestValues
    from api_client.task import TaskStatus, TrainingTask
    from api_client.templates import BUILTIN_TEMPLATES, SiteTemplate, Template

_MODULES = {
    "client": ("PackagingClient",),
    "errors": ("ErrorClass", "ErrorCode", "PackagingError"),
    "events": ("Event", "EventKind"),
    "fleet": ("HealthInfo", "QueueInfo", "WorkerInfo"),
    "job": (
        "Artifact",
        "ArtifactKind",
        "Attempt",
        "AttemptOutcome",
        "Job",
        "JobState",
        "Progress",
        "Stage",
        "StageName",
        "StageState",
    ),
    "quant_types": ("QUANT_TYPES", "QuantType"),
    "request": ("ImatrixOptions", "Options", "PackagingRequest", "RequestValues"),
    "task": ("TaskStatus", "TrainingTask"),
    "templates": ("BUILTIN_TEMPLATES", "SiteTemplate", "Template"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "BUILTIN_TEMPLATES",
    "QUANT_TYPES",
    "Artifact",
    "ArtifactKind",
    "Attempt",
    "AttemptOutcome",
    "ErrorClass",
    "ErrorCode",
    "Event",
    "EventKind",
    "HealthInfo",
    "ImatrixOptions",
    "Job",
    "JobState",
    "Options",
    "PackagingClient",
    "PackagingError",
    "PackagingRequest",
    "Progress",
    "QuantType",
    "QueueInfo",
    "RequestValues",
    "SiteTemplate",
    "Stage",
    "StageName",
    "StageState",
    "TaskStatus",
    "Template",
    "TrainingTask",
    "WorkerInfo",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__]
