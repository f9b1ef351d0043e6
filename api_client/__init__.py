"""The contract and the client of trainpack: requests, jobs, events, errors, and ``PackagingClient``.

Light to import: nothing of Celery, Redis or the worker is loaded before it is used. Reading order: ``request`` ->
``rules`` -> ``plan`` -> ``client`` -> ``store``; the worker's side begins in ``worker.service.tasks``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from api_client.client import PackagingClient
    from api_client.contract.errors import ErrorClass, ErrorCode, PackagingError
    from api_client.contract.events import Event, EventKind
    from api_client.contract.fleet import HealthInfo, QueueInfo, WorkerInfo
    from api_client.contract.job import (
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
    from api_client.contract.quant_types import QUANT_TYPES, QuantType
    from api_client.contract.request import ImatrixOptions, Options, PackagingRequest, RequestValues
    from api_client.contract.task import TaskStatus, TrainingTask
    from api_client.contract.templates import BUILTIN_TEMPLATES, SiteTemplate, Template

_MODULES = {
    "client": ("PackagingClient",),
    "contract.errors": ("ErrorClass", "ErrorCode", "PackagingError"),
    "contract.events": ("Event", "EventKind"),
    "contract.fleet": ("HealthInfo", "QueueInfo", "WorkerInfo"),
    "contract.job": (
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
    "contract.quant_types": ("QUANT_TYPES", "QuantType"),
    "contract.request": ("ImatrixOptions", "Options", "PackagingRequest", "RequestValues"),
    "contract.task": ("TaskStatus", "TrainingTask"),
    "contract.templates": ("BUILTIN_TEMPLATES", "SiteTemplate", "Template"),
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
