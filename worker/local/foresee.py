"""What a job would do, without doing it: ``prepare`` runs here, for its checks and its exact sizes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from api_client.contract.disk_need import DiskNeed, disk_needs
from api_client.contract.forecast import usual_memory_bytes
from api_client.contract.job import StageName
from api_client.contract.outputs import UNQUANTIZED, InputNames, planned_outputs
from api_client.contract.plan import plan_stages
from api_client.contract.recommend import shape_of
from api_client.contract.request import PackagingRequest
from api_client.contract.rules import resolve_request, writes_unquantized
from api_client.contract.templates import Template
from api_client.disk import existing, free_bytes, on_one_disk
from config.settings import Settings
from worker.models.sizes import machine_memory_bytes, predict_file_sizes
from worker.stages import prepare
from worker.stages.context import StageContext
from worker.stages.prepare import MODEL_BYTES_FACT

__all__ = ["Foreseen", "foresee"]


@dataclass(frozen=True)
class Foreseen:
    """What a job would do.

    Attributes:
        plan: Its stages.
        files: Size of every file by its name, where it is known beforehand; of a merged model it may be as much as its
            adapter smaller.
        unquantized_bytes: Size of the unquantized file, written or not; 0 where nothing is converted.
        unwritten: Whether it is never written.
        quant_types: Names of its quant types.
        disks: Room that it takes and that there is, by file system.
        usual_memory_bytes: Memory of the stage that takes most, by the usual rule.
        memory_bytes: Memory of this machine.
        notes: What ``prepare`` said, with its level.
    """

    plan: tuple[StageName, ...]
    files: Mapping[str, int | None]
    unquantized_bytes: int
    unwritten: bool
    quant_types: tuple[str, ...]
    disks: tuple[DiskNeed, ...]
    usual_memory_bytes: int
    memory_bytes: int
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
    assert result.prepared is not None, "prepare hands its inputs over"
    sizes = {str(name): int(size) for name, size in dict(result.facts.get("predicted_bytes", {})).items()}
    types = tuple(str(getattr(kind, "value", kind)) for kind in options.quant_types)
    named = planned_outputs(
        resolved,
        options,
        InputNames(
            result.facts["base_name"],
            result.facts["checkpoint_name"],
            has_projector=result.prepared.has_projector,
        ),
    )
    metadata, _ = predict_file_sizes(result.prepared.base_dir, settings.allowed_roots)
    apart = not on_one_disk(place, target)
    model_bytes, written = int(result.facts.get(MODEL_BYTES_FACT, 0)), writes_unquantized(resolved, options)
    is_kept = any(output.spec is UNQUANTIZED for output in named)
    # what is written once on each disk: prepare has added both up
    twice = sum(sizes.values()) + (model_bytes if written and not is_kept else 0)
    twice = twice if options.export_gguf else notes.needed_bytes // (2 if apart else 1)
    disks = disk_needs(
        notes.needed_bytes - (twice if apart else 0),
        sum(sizes.values()) if options.export_gguf else twice,
        DiskNeed(str(existing(target)), None, free_bytes(target)),
        DiskNeed(str(place), None, free_bytes(place)) if apart else None,
    )
    return Foreseen(
        plan=plan,
        files={output.name: sizes.get(output.name) for output in named},
        unquantized_bytes=model_bytes,
        unwritten=not written,
        quant_types=types,
        disks=disks,
        usual_memory_bytes=usual_memory_bytes(shape_of(metadata)),
        memory_bytes=machine_memory_bytes(),
        notes=tuple(notes.lines),
    )
