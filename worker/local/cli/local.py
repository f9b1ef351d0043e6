"""``up``, ``package`` and ``demo``: the embedded stack on this machine."""

from __future__ import annotations

import contextlib
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from api_client.cli.arguments import DryRunOption, RunPlace
from api_client.cli.commands.follow import end_of, report_end
from api_client.cli.extras import needs_extra
from api_client.cli.failures import DONE, INTERRUPTED, JOB_FAILED
from api_client.cli.flags import RequestFlags
from api_client.cli.from_run import asked_for
from api_client.cli.outlook import Outlook, announce_matrix, past_forecast, show_outlook
from api_client.cli.output import Output, plain
from api_client.cli.render.job import outputs_table, stage_table
from api_client.cli.watching import watch_jobs
from api_client.connection import open_client
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.forecast import MemoryNeed, Workload
from api_client.contract.job import Job, JobState
from api_client.contract.request import PackagingRequest
from api_client.contract.rules import find_template
from api_client.contract.templates import BUILTIN_TEMPLATES
from api_client.ledger.address import masked_url
from api_client.words.formatting import format_size
from worker.local.clean import SEAWEEDFS_DIRECTORY, size_of
from worker.local.cli.ask import MAX_TOKENS, answers_of, opened, say_answers
from worker.local.cli.signals import terminate_as_interrupt
from worker.local.subject import subject_of_job

if TYPE_CHECKING:
    from api_client.client import PackagingClient
    from worker.local.embedded import Stack

PACKAGE_EXAMPLES = """[bold]Examples[/bold]

  trainpack package /runs/42

  trainpack package /runs/42/checkpoint-900 -q Q4_K_M,Q8_0

  trainpack package -b /models/base -c /runs/42/checkpoint-900 -o /out -q Q4_K_M,Q5_K_M,Q8_0
"""
_LOOK_EVERY_S = 1.0
_CANCEL_WAIT_S = 15.0


def up(
    output: Output,
    *,
    no_worker: Annotated[
        bool, typer.Option("--no-worker", metavar="", help="Only Valkey and SeaweedFS; start workers yourself.")
    ] = False,
    workers: Annotated[int, typer.Option("--workers", help="How many workers.", min=1, max=64, metavar="N")] = 1,
    no_console: Annotated[bool, typer.Option("--no-console", metavar="", help="Without the web console.")] = False,
    open_page: Annotated[bool, typer.Option("--open", metavar="", help="Open the console in the browser.")] = False,
) -> int:
    """Run Valkey, SeaweedFS, a worker and the console on this machine until Ctrl-C.

    Other commands find them by themselves. All listen on this machine only; data and logs lie in ~/.trainpack or
    TRAINPACK_HOME.
    """
    with running_stack(output, workers=0 if no_worker else workers) as stack:
        url = _console(output, stack) if stack.owned and not no_console else None
        _announce(output, stack, url)
        if not stack.owned:
            return DONE
        if open_page and url is not None:
            webbrowser.open(url)
        try:
            return _guard(output, stack)
        except KeyboardInterrupt:
            output.say(output.text("stopping"))
            return DONE


def package(
    output: Output,
    *,
    flags: RequestFlags,
    run: RunPlace = None,
    question: Annotated[
        str | None,
        typer.Option("--ask", help="Ask the packaged model this when it is done.", metavar="QUESTION"),
    ] = None,
    dry_run: DryRunOption = False,
) -> int:
    """Package one run on this machine, then exit.

    Of a run it is the best checkpoint by its scores, else the latest; flags decide otherwise. Without RUN and inputs it
    is the working directory.

    Uses the embedded stack that runs, or starts one and stops it again. Takes the flags of submit. Ctrl-C cancels the
    job. Exits 1 if the job failed.
    """
    request = asked_for(run, flags, output, sees_files=True)
    _check_site_template(request.template)
    if dry_run:
        return _foresee(output, request)
    request, objects = _where_it_goes(request)
    with running_stack(output, objects=objects) as stack, open_client(stack.info.redis_url) as client:
        job = client.submit(request)
        if not output.as_json:
            announce_matrix(output, client, job)
        if not client.workers():
            output.say(output.text("no_workers"), style="yellow")
        try:
            [job] = [client.wait(job.id)] if output.as_json else watch_jobs(client, [job.id], output)
        except KeyboardInterrupt:
            _cancel(output, client, job)
            return INTERRUPTED
    return _ended(output, job, question)


def _foresee(output: Output, request: PackagingRequest) -> int:
    """Say what the job would do, by ``prepare`` run here and by what jobs before it took on this machine."""
    with needs_extra("worker,embedded"):
        from config.settings import load_settings
        from worker.local.foresee import foresee
    settings = load_settings()
    waiting = output.notes.status(output.text("measuring")) if output.live else contextlib.nullcontext()
    # the records of jobs before are in the stack's Valkey, which starts alone in a moment
    with running_stack(output, 0, objects=False) as stack, open_client(stack.info.redis_url) as client, waiting:
        foreseen = foresee(request, client.templates(), settings)
        made = sum(size for size in foreseen.files.values() if size is not None)
        work = Workload(
            foreseen.plan,
            foreseen.unquantized_bytes,
            made,
            foreseen.quant_types,
            unwritten=foreseen.unwritten,
        )
        told = past_forecast(client, work, settings.host_name)
    outlook = Outlook(
        request=request,
        plan=foreseen.plan,
        files=foreseen.files,
        disks=foreseen.disks,
        memory=MemoryNeed.of(told, foreseen.usual_memory_bytes, foreseen.memory_bytes),
        forecast=told,
        notes=foreseen.notes,
    )
    return show_outlook(output, outlook)


def _where_it_goes(request: PackagingRequest) -> tuple[PackagingRequest, bool]:
    """The request, which uploads nothing where nobody has set object storage up, and whether to run the embedded one.

    The outputs lie in their directory anyway; a second copy under the home directory would be of no use to anyone.
    """
    with needs_extra("worker,embedded"):
        from config.settings import load_settings
    settings = load_settings()
    if settings.s3_bucket is not None or settings.s3_endpoint_url is not None:
        return request, False
    if (request.output_dir or "").startswith("s3://"):
        return request, True
    inputs = (request.base_model, request.checkpoint, request.imatrix.path, request.imatrix.calibration)
    remote = any((place or "").startswith("s3://") for place in inputs)
    return PackagingRequest(**request.model_dump(exclude_unset=True) | {"upload": False}), remote


def _ended(output: Output, job: Job, question: str | None) -> int:
    """Say what came of the job, and ask what it made."""
    if not output.as_json:
        report_end(output, [job])
    answers = None
    if question is not None and job.state is JobState.SUCCEEDED:
        asked = subject_of_job(job)
        with opened(output, asked, None, None, with_base=False) as voices:
            answers = answers_of(voices, question, MAX_TOKENS) if output.as_json else None
            if answers is None:
                say_answers(output, voices, question, MAX_TOKENS)
    if output.as_json:
        output.document(job if answers is None else {**plain(job), "answers": answers})
    return end_of([job])


def demo(output: Output) -> int:
    """Train a small LoRA on a new fact, package it, ask it before and after.

    Takes a few minutes the first time; the base model and the training run are kept for the next.
    """
    with needs_extra("worker,embedded,demo"):
        from config.settings import load_settings
        from worker.local.demo.run import package_and_ask, prepare_run
    cache_dir = load_settings().home / "demo"
    with terminate_as_interrupt():
        prepare_run(cache_dir, output.say)
    with running_stack(output) as stack, open_client(stack.info.redis_url) as client:
        result = package_and_ask(
            client, cache_dir, cache_dir / "package", lambda job_id: _watch_one(output, client, job_id), output.say
        )
    if output.as_json:
        answers = {"base": result.base_answer, "packaged": result.packaged_answer}
        output.document({"taught": result.taught, "question": result.question, "answers": answers, "job": result.job})
    else:
        width = output.results.width
        output.show(
            Text.assemble(("Question  ", "bold"), result.question),
            Text.assemble(("Base      ", "bold"), result.base_answer),
            Text.assemble(("Packaged  ", "bold"), (result.packaged_answer, "green" if result.taught else "red")),
            Text(),
            stage_table(output, result.job, width),
            Text(),
            outputs_table(output, result.job, width),
        )
    return DONE if result.taught else JOB_FAILED


def _check_site_template(name: str) -> None:
    """Refuse a template that the stack's worker will not have either, before the stack is started for it.

    Raises:
        PackagingError: ``unknown_template``, ``settings_invalid``.
    """
    if name in BUILTIN_TEMPLATES:
        return
    with needs_extra("worker,embedded"):
        from config.settings import load_settings
        from config.site_templates import load_site_templates
        from worker.local.embedded import read_stack
    settings = load_settings()
    if read_stack(settings.home) is None:
        find_template(name, BUILTIN_TEMPLATES | load_site_templates(settings.templates_file))


@contextmanager
def running_stack(output: Output, workers: int = 1, *, objects: bool = True) -> Iterator[Stack]:
    """The embedded stack, found or started, and stopped again if it was started here.

    Raises:
        PackagingError: ``dependency_missing``, ``service_start_failed``, ``settings_invalid``.
    """
    with needs_extra("worker,embedded"):
        from config.settings import load_settings
        from worker.local.embedded import Stack
    stack = Stack(load_settings().home, workers=workers, objects=objects)
    with terminate_as_interrupt():
        if output.live:
            with output.notes.status(output.text("starting" if objects else "starting_small")):
                stack.start()
        else:
            stack.start()
        try:
            yield stack
        finally:
            stack.stop()


def _console(output: Output, stack: Stack) -> str | None:
    """The console's address; a stack without one serves all the same, and it is said why there is none."""
    if find_spec("fastapi") is None:
        output.say(output.text("console_missing"), style="yellow")
        return None
    try:
        return stack.serve_console()
    except PackagingError as error:
        output.say(error.message, style="yellow")
        return None


def _announce(output: Output, stack: Stack, url: str | None) -> None:
    info = stack.info
    if output.as_json:
        output.document(
            {
                "owned": stack.owned,
                "home": str(info.home),
                "redis_url": masked_url(info.redis_url),
                "s3": {"endpoint_url": info.endpoint_url, "bucket": info.bucket},
                "storage_bytes": size_of(info.home / SEAWEEDFS_DIRECTORY),
                "services": {name: process.pid for name, process in info.services.items()},
                "console": url,
            }
        )
        return
    output.show(
        Text(output.text("up_ready" if stack.owned else "up_already"), style="bold green"),
        *([Text(f"  {output.text('console')}  {url}", style="bold")] if url else []),
        Text(f"  Redis  {masked_url(info.redis_url)}"),
        *_storage_lines(info.endpoint_url, info.bucket, info.home / SEAWEEDFS_DIRECTORY),
        Text(f"  home   {info.home}"),
        Text(f"  {', '.join(f'{name} {process.pid}' for name, process in info.services.items())}", style="dim"),
    )
    if stack.owned:
        output.say(output.text("up_hint"), style="dim")


def _storage_lines(endpoint_url: str, bucket: str, directory: Path) -> list[Text]:
    """Where object storage listens, where it keeps what is uploaded, and how much that is."""
    if not endpoint_url:
        return []
    return [
        Text(f"  S3     {endpoint_url}  s3://{bucket}"),
        Text(f"         {directory}  {format_size(size_of(directory))}", style="dim"),
    ]


def _guard(output: Output, stack: Stack) -> int:
    """Wait for Ctrl-C; say so when a part ends, and leave when nothing is left to serve."""
    from worker.local.embedded.stack import CONSOLE

    pause = threading.Event()
    told: set[str] = set()
    while True:
        pause.wait(_LOOK_EVERY_S)
        ended = {service.name: service for service in stack.ended()}
        for name in ended.keys() - told:
            told.add(name)
            output.say(ended[name].start_failed("no longer runs").message, style="red")
        all_workers = {name for name in stack.info.services if name.startswith("worker")}
        if ended.keys() - all_workers - {CONSOLE} or (all_workers and all_workers <= ended.keys()):
            names = ", ".join(sorted(ended))
            raise PackagingError(
                ErrorCode.SERVICE_START_FAILED,
                f"{names} ended; the stack is stopped",
                fields={"services": sorted(ended)},
            )


def _watch_one(output: Output, client: PackagingClient, job_id: str) -> Job:
    if output.as_json:
        return client.wait(job_id)
    return watch_jobs(client, [job_id], output)[0]


def _cancel(output: Output, client: PackagingClient, job: Job) -> None:
    """Cancel a job whose command was interrupted, and wait until its stage has stopped."""
    output.say(output.text("cancelling_job", id=job.id))
    try:
        client.cancel(job.id)
        client.wait(job.id, _CANCEL_WAIT_S)
    except PackagingError as error:
        if error.code not in (ErrorCode.JOB_FINISHED, ErrorCode.WAIT_TIMEOUT):
            raise
