"""What a job would do, as ``--dry-run`` shows it: stages with their time, files with their sizes, room for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from api_client.cli.failures import DONE, JOB_FAILED
from api_client.cli.output import Output
from api_client.cli.render.states import stage_name
from api_client.cli.render.tables import ALWAYS, Column, fit_table
from api_client.client import PackagingClient
from api_client.contract.forecast import MOST_JOBS, Forecast, Workload, forecast
from api_client.contract.job import JobState
from api_client.contract.locations import is_remote
from api_client.contract.outputs import QUANTIZED, UNQUANTIZED, InputNames, planned_outputs
from api_client.contract.plan import plan_stages
from api_client.contract.quant_types import QuantType
from api_client.contract.request import PackagingRequest
from api_client.contract.rules import resolve_request, writes_unquantized
from api_client.contract.stages import StageName
from api_client.ledger.questions import Questions
from api_client.words.formatting import format_duration, format_size, one_line

_SIXTEEN_BIT = QuantType.BF16


@dataclass(frozen=True)
class Outlook:
    """What a job would do.

    Attributes:
        request: The job's request.
        plan: Its stages.
        files: Size in bytes of every model file by name; None where it is not known beforehand.
        needed_bytes: Room it takes while it runs, where known.
        free_bytes: Room at ``place``, where known.
        place: Where that is.
        forecast: How long it takes.
        notes: What stands out, each with its level.
    """

    request: PackagingRequest
    plan: Sequence[StageName]
    files: Mapping[str, int | None]
    needed_bytes: int | None
    free_bytes: int | None
    place: str
    forecast: Forecast
    notes: Sequence[tuple[str, str]] = ()

    def document(self) -> dict[str, Any]:
        """For programs."""
        return {
            "dry_run": True,
            "request": self.request,
            "plan": [stage.value for stage in self.plan],
            "files": dict(self.files),
            "disk": {"path": self.place, "needed_bytes": self.needed_bytes, "free_bytes": self.free_bytes},
            "seconds": {stage.value: seconds for stage, seconds in self.forecast.seconds.items()},
            "forecast": {"jobs": self.forecast.jobs, "off_by": self.forecast.off_by},
        }

    def view(self, output: Output) -> Iterator[RenderableType]:
        """For people."""
        for level, message in self.notes:
            if level != "info":
                yield Text(one_line(message), style="yellow")
        seconds = [self.forecast.seconds.get(stage) for stage in self.plan]
        yield fit_table(
            [
                Column(output.text("stage"), [stage_name(output.language, stage) for stage in self.plan], ALWAYS),
                Column(
                    output.text("foreseen"),
                    ["?" if duration is None else format_duration(duration) for duration in seconds],
                    ALWAYS,
                    right=True,
                ),
            ],
            output.results.width,
        )
        yield Text(self._told(output))
        yield Text()
        for name, size in self.files.items():
            shown = "?" if size is None else format_size(size)
            yield Text(f"{shown:>9}  {one_line(name)}")
        yield Text(
            output.text(
                "room",
                path=self.place,
                needed="?" if self.needed_bytes is None else format_size(self.needed_bytes),
                free="?" if self.free_bytes is None else format_size(self.free_bytes),
            )
        )

    def _told(self, output: Output) -> str:
        told = self.forecast
        if not told.jobs:
            return output.text("foreseen_nothing")
        known = output.text("foreseen_total", time=format_duration(told.total_s), jobs=told.jobs)
        return known if told.off_by is None else f"{known}{output.text('foreseen_held', off=f'{told.off_by:.0%}')}"


def show_outlook(output: Output, outlook: Outlook) -> int:
    """Show it; the exit code says whether there is room."""
    if output.as_json:
        output.document(outlook.document())
    else:
        output.show(*outlook.view(output))
    needed, free = outlook.needed_bytes, outlook.free_bytes
    return JOB_FAILED if needed is not None and free is not None and needed > free else DONE


def past_forecast(client: PackagingClient, work: Workload, host: str | None) -> Forecast:
    """A forecast by the newest jobs that succeeded."""
    return forecast(work, client.list(JobState.SUCCEEDED, limit=MOST_JOBS), host)


def ask_outlook(client: PackagingClient, request: PackagingRequest) -> Outlook:
    """What workers say of a request: sizes by the base model's headers, room where it writes. A merge adds a little.

    Raises:
        PackagingError: what would refuse the request; ``question_unanswered`` without a worker, and what it found.
    """
    resolved, options = resolve_request(request, client.templates())
    questions = Questions(client)
    sizes = questions.sizes(resolved.base_model or "")
    plan = plan_stages(resolved, options)
    unquantized = sizes.sizes.get(_unquantized_type(resolved))
    files: dict[str, int | None] = {}
    for output in planned_outputs(resolved, options, InputNames.of(resolved, options)):
        if output.spec is UNQUANTIZED:
            files[output.name] = unquantized
        elif output.spec is QUANTIZED and isinstance(output.quant_type, QuantType):
            files[output.name] = sizes.sizes.get(output.quant_type)
    target = resolved.output_dir or ""
    space = None if is_remote(target) else questions.space(target)
    known = [size for size in files.values() if size is not None]
    written = writes_unquantized(resolved, options)
    needed = sum(known) + (unquantized or 0 if written and unquantized not in files.values() else 0)
    types = tuple(str(kind) for kind in options.quant_types)
    work = Workload(plan, unquantized or 0, sum(known), types, unwritten=not written)
    return Outlook(
        request=resolved,
        plan=plan,
        files=files,
        needed_bytes=needed,
        free_bytes=space.free_bytes if space else None,
        place=target,
        forecast=past_forecast(client, work, sizes.host),
    )


def _unquantized_type(request: PackagingRequest) -> QuantType:
    # as the base model is hardly ever anything but a 16-bit float
    return _SIXTEEN_BIT if request.gguf_dtype == "auto" else QuantType(request.gguf_dtype.upper())
