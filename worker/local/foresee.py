"""What a job would do, without doing it: ``prepare`` runs here, for its checks and its exact sizes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from api_client.contract.job import StageName
from api_client.contract.plan import plan_stages
from api_client.contract.request import PackagingRequest
from api_client.contract.rules import resolve_request, writes_unquantized
from api_client.contract.templates import Template
from api_client.disk import existing, free_bytes
from config.settings import Settings
from worker.stages import prepare
from worker.stages.context import StageContext
from worker.stages.prepare import MODEL_BYTES_FACT

__all__ = ["Foreseen", "foresee"]


@dataclass(frozen=True)
class Foreseen:
    """What a job would do.

    Attributes:
        plan: Its stages.
        files: Size of every file of the model by its name; a merged one may be as much as its adapter smaller.
        unquantized_bytes: Size of the unquantized one, written or not; 0 where nothing is converted.
        unwritten: Whether it is never written.
        quant_types: Names of its quant types.
        needed_bytes: Room that it takes while it runs, scratch and outputs together.
        free_bytes: Room there is where it writes.
        place: Where that is.
        notes: What ``prepare`` said, with its level.
    """

    plan: tuple[StageName, ...]
    files: Mapping[str, int]
    unquantized_bytes: int
    unwritten: bool
    quant_types: tuple[str, ...]
    needed_bytes: int
    free_bytes: int
    place: Path
    notes: tuple[tuple[str, str], ...]


@dataclass
class _Notes:
    """Listens to ``prepare``."""

    lines: list[tuple[str, str]] = field(default_factory=list)
    needed_bytes: int = 0

    def log(self, message: str, *, level: str = "info", **fields: Any) -> None:
        self.lines.append((level, message))
        self.needed_bytes = int(fields.get("needed_bytes", self.needed_bytes))

    def progress(self, done: float, total: float, unit: str, detail: str = "") -> None:
        """Nobody looks."""

    def waits_to_publish(self, directory: str) -> None:
        """Nothing is published."""

    def should_stop(self) -> bool:
        return False

    def confirm(self) -> None:
        """There is no other attempt."""


def foresee(request: PackagingRequest, templates: Mapping[str, Template], settings: Settings) -> Foreseen:
    """Check a request as the service would, and say what it would make. Writes nothing but fetched inputs.

    Raises:
        PackagingError: whatever would refuse the job at submit or in its first stage.
    """
    resolved, options = resolve_request(request, templates)
    plan = plan_stages(resolved, options)
    output = resolved.output_dir or ""
    target = Path(settings.home if "://" in output else output)
    place = settings.scratch_dir or existing(target)
    notes = _Notes()
    with tempfile.TemporaryDirectory(prefix=".trainpack-", dir=existing(place)) as scratch:
        context = StageContext(
            job_id="dry-run",
            stage=StageName.PREPARE,
            attempt=1,
            request=resolved,
            options=options,
            plan=plan,
            done={},
            scratch=Path(scratch),
            settings=settings.for_stages(),
            report=notes,
        )
        result = prepare.run(context)
    files = {str(name): int(size) for name, size in dict(result.facts.get("predicted_bytes", {})).items()}
    types = tuple(str(getattr(kind, "value", kind)) for kind in options.quant_types)
    return Foreseen(
        plan=plan,
        files=files,
        unquantized_bytes=int(result.facts.get(MODEL_BYTES_FACT, 0)),
        unwritten=not writes_unquantized(resolved, options),
        quant_types=types,
        needed_bytes=notes.needed_bytes,
        free_bytes=free_bytes(target),
        place=existing(target),
        notes=tuple(notes.lines),
    )
