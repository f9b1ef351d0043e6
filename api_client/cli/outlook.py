"""What a job would do, as ``--dry-run`` shows it: stages with their time, files with their sizes, room for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.text import Text

from api_client.cli.failures import DONE, JOB_FAILED
from api_client.cli.output import Output
from api_client.cli.render.states import stage_name
from api_client.cli.render.tables import ALWAYS, Column, fit_table
from api_client.contract.disk_need import DiskNeed, disk_needs
from api_client.contract.forecast import (
    MOST_JOBS,
    Forecast,
    MemoryNeed,
    Workload,
    forecast,
    usual_memory_bytes,
)
from api_client.contract.job import Job, JobState
from api_client.contract.locations import is_remote
from api_client.contract.outputs import QUANTIZED, UNQUANTIZED, InputNames, planned_outputs
from api_client.contract.plan import plan_stages
from api_client.contract.quant_types import QuantType
from api_client.contract.request import PackagingRequest, unquantized_type
from api_client.contract.rules import resolve_request, writes_unquantized
from api_client.contract.stages import StageName
from api_client.words.formatting import format_duration, format_size, one_line

if TYPE_CHECKING:
    from api_client.client import PackagingClient


@dataclass(frozen=True)
class Outlook:
    """What a job would do.

    Attributes:
        request: The job's request.
        plan: Its stages.
        files: Size in bytes of every file by name; None where it is not known beforehand.
        disks: Room it takes while it runs, and there is, by file system.
        memory: What it takes of it, and what there is.
        forecast: How long it takes.
        notes: What stands out, each with its level.
    """

    request: PackagingRequest
    plan: Sequence[StageName]
    files: Mapping[str, int | None]
    disks: Sequence[DiskNeed]
    memory: MemoryNeed
    forecast: Forecast
    notes: Sequence[tuple[str, str]] = ()

    def document(self) -> dict[str, Any]:
        """For programs."""
        return {
            "dry_run": True,
            "request": self.request,
            "plan": [stage.value for stage in self.plan],
            "files": dict(self.files),
            "disks": [
                {"path": disk.place, "needed_bytes": disk.needed_bytes, "free_bytes": disk.free_bytes}
                for disk in self.disks
            ],
            "memory": {
                "needed_bytes": self.memory.needed_bytes,
                "measured": self.memory.measured,
                "of_machine_bytes": self.memory.of_machine_bytes,
                "by_stage": {stage.value: size for stage, size in self.forecast.memory_bytes.items()},
            },
            "seconds": {stage.value: seconds for stage, seconds in self.forecast.seconds.items()},
            "forecast": {"jobs": self.forecast.jobs, "off_by": self.forecast.off_by},
        }

    def view(self, output: Output) -> Iterator[RenderableType]:
        """For people."""
        for level, message in self.notes:
            if level != "info":
                yield Text(one_line(message), style="yellow")
        seconds = [self.forecast.seconds.get(stage) for stage in self.plan]
        peaks = [self.forecast.memory_bytes.get(stage) for stage in self.plan]
        yield fit_table(
            [
                Column(output.text("stage"), [stage_name(output.language, stage) for stage in self.plan], ALWAYS),
                Column(
                    output.text("foreseen"),
                    ["?" if duration is None else format_duration(duration) for duration in seconds],
                    ALWAYS,
                    right=True,
                ),
                *(
                    [Column(output.text("memory_taken"), [_size(peak) for peak in peaks], 5, right=True)]
                    if any(peaks)
                    else []
                ),
            ],
            output.results.width,
        )
        yield Text(self._told(output))
        yield Text()
        for name, size in self.files.items():
            yield Text(f"{_size(size):>9}  {one_line(name)}")
        for disk in self.disks:
            told = output.text("room", path=disk.place, needed=_size(disk.needed_bytes), free=_size(disk.free_bytes))
            yield Text(told, style="red" if disk.too_little else "")
        key = "memory_measured" if self.memory.measured else "memory_by_rule"
        yield Text(
            output.text(key, needed=_size(self.memory.needed_bytes), machine=_size(self.memory.of_machine_bytes))
        )

    def _told(self, output: Output) -> str:
        told = self.forecast
        if not told.jobs:
            return output.text("foreseen_nothing")
        known = output.text("foreseen_total", time=format_duration(told.total_s), jobs=told.jobs)
        return known if told.off_by is None else f"{known}{output.text('foreseen_held', off=f'{told.off_by:.0%}')}"


def _size(size: int | None) -> str:
    return "?" if size is None else format_size(size)


def show_outlook(output: Output, outlook: Outlook) -> int:
    """Show it; the exit code says whether there is room."""
    if output.as_json:
        output.document(outlook.document())
    else:
        output.show(*outlook.view(output))
    return JOB_FAILED if any(disk.too_little for disk in outlook.disks) else DONE


def past_forecast(client: PackagingClient, work: Workload, host: str | None) -> Forecast:
    """A forecast by the newest jobs that succeeded."""
    return forecast(work, client.list(JobState.SUCCEEDED, limit=MOST_JOBS), host)


def announce_matrix(output: Output, client: PackagingClient, job: Job) -> None:
    """Say of a job that computes an importance matrix how long that will take: it may be most of the time."""
    if StageName.IMATRIX not in job.plan:
        return
    model_bytes = _weights_bytes(job.request.base_model)
    told = past_forecast(client, Workload(job.plan, model_bytes, 0), None) if model_bytes else None
    seconds = told.seconds.get(StageName.IMATRIX) if told else None
    if seconds is None:
        output.say(output.text("matrix_takes_unknown"))
    else:
        output.say(output.text("matrix_takes", time=format_duration(seconds)))


def _weights_bytes(base_model: str | None) -> int:
    """Size of a model's weights, where this machine sees them: about that of its unquantized file. Else 0."""
    if base_model is None or is_remote(base_model):
        return 0
    try:
        return sum(path.stat().st_size for path in Path(base_model).glob("*.safetensors"))
    except OSError:
        return 0


def ask_outlook(client: PackagingClient, request: PackagingRequest) -> Outlook:
    """What workers say of a request: sizes by the base model's headers, room where it writes. A merge adds a little.

    Raises:
        PackagingError: what would refuse the request; ``question_unanswered`` without a worker, and what it found.
    """
    from api_client.ledger.questions import Questions  # commands that ask no worker load nothing of Redis

    resolved, options = resolve_request(request, client.templates())
    questions = Questions(client)
    sizes = questions.sizes(resolved.base_model or "")
    plan = plan_stages(resolved, options)
    unquantized = sizes.sizes.get(unquantized_type(resolved))
    files: dict[str, int | None] = {}
    for output in planned_outputs(resolved, options, InputNames.of(resolved, options)):
        size = None
        if output.spec is UNQUANTIZED:
            size = unquantized
        elif output.spec is QUANTIZED and isinstance(output.quant_type, QuantType):
            size = sizes.sizes.get(output.quant_type)
        files[output.name] = size
    target = resolved.output_dir or ""
    space = None if is_remote(target) else questions.space(target)
    known = [size for size in files.values() if size is not None]
    written = writes_unquantized(resolved, options)
    needed = sum(known) + (unquantized or 0 if written and unquantized not in files.values() else 0)
    elsewhere = space.scratch if space else None
    types = tuple(str(kind) for kind in options.quant_types)
    work = Workload(plan, unquantized or 0, sum(known), types, unwritten=not written)
    told = past_forecast(client, work, sizes.host)
    return Outlook(
        request=resolved,
        plan=plan,
        files=files,
        disks=disk_needs(
            needed,
            sum(known),
            DiskNeed(target, None, space.free_bytes if space else None),
            DiskNeed(elsewhere.path, None, elsewhere.free_bytes) if elsewhere else None,
        ),
        memory=MemoryNeed.of(told, usual_memory_bytes(sizes.shape), sizes.memory_bytes),
        forecast=told,
    )
